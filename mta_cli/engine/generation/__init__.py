"""Decoding: one loop (`generate`) for one request or many of different users, token by token."""
