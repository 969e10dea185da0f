"""Decoding: one user at a time (`generate`), or many users in one batch (`generate_batch`)."""
