"""All methods by name (`catalog`), and baselines that build their models with their own code.

`neighbours` needs no language model; `per_pcs` and `prime` follow the papers of these names.
"""
