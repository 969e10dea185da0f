"""Log-likelihoods of answers under many adapters at once.

Read `log_likelihood` first, then `prefix_tree` (what runs), `prefix_cache_scoring` (how it runs once for all users) and
`backends`. `label_examples` says what a labelled shot is scored by.
"""
