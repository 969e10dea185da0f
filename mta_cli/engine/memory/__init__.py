"""Label memory: other users' answers to similar inputs, and the frequencies of the user's own labels.

It is not in the paper. Read `label_prior` first, then `knn` and `linear_discriminant`.
"""
