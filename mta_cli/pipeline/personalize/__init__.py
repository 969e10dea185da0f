"""One user's model: fuse anchors, adapt a stack, read the weights, export them.

Read `fuse`, `adapt`, `weights`, `export` in this order.
"""
