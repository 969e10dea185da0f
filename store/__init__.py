"""The registry of users, banks and models, and its files. It imports neither engine nor terminal."""
