"""Every way to personalise a model, as `mta eval` compares them and the product stores them.

Read `method` first, then `fusion` and `stacks`.
"""
