"""The whole registry in one terminal window. Shows what `pipeline` and `store` say; computes nothing of its own."""
