"""Label memory: what other users answered to similar inputs, and how often a user gives each label.

It is not in the paper. Read `label_prior` first, then `knn` and `linear_discriminant`.
"""
