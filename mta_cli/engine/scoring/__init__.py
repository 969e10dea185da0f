"""Log-likelihoods of answers under many adapters at once.

Read `log_likelihood` first, then `prefix_tree` (the tokens that run), `prefix_cache_scoring` (shared prefixes run once
for all users) and `backends`. `label_examples` defines the loss of a labelled shot.
"""
