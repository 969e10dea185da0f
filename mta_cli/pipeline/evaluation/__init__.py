"""`mta eval`: design, banks of folds, cells, scores and files.

Read `design` and `run` first.
"""
