"""Measures users' stored models: answers to held-out queries, authorship, and the ladder in words.

`mta_cli.lab` compares methods.
"""
