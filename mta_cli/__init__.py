"""Merge-then-Adapt in the terminal: one language model, personal for many people."""

__version__ = "0.1.0"
