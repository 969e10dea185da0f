"""Measures users' stored models, for the product: answers to held-out queries, whose they are, and the ladder in words.

Comparisons of methods are in `mta_cli.lab`.
"""
