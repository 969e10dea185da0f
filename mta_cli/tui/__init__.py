"""The terminal window on the whole registry. Shows results of `pipeline` and `store` and computes nothing itself."""
