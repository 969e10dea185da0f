"""One user's model: fuse anchors, adapt a stack, export both.

Read `fuse`, `adapt`, `export` in this order; `pipeline/user_weights.py` reads what they store.
"""
