"""Methods of others, and baselines without a language model. Each builds its models by itself.

`majority` and `neighbours` need no language model; `per_pcs` and `prime` are as in the papers of these names.
"""
