"""All methods of personalising a model. The product and the evaluation call the same code.

A method is five choices: what lies below, which anchors and weights, which stack, which label memory, and whether the
prompt shows history. Read `method` first, then `anchor_weights` (stage 2), `stacks` (stage 3), `personalize` (all of
them) and `catalog` (names). `baselines` are methods of others.
"""
