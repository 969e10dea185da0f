"""All methods by name (`catalog`), and methods of others, which build their models by themselves.

`neighbours` needs no language model; `per_pcs` and `prime` are as in the papers of these names.
"""
