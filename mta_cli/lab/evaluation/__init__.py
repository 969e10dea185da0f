"""Evaluations: the design, banks of folds, answers of methods, the result document, and files of finished evaluations.

Read `design` and `run` first.
"""
