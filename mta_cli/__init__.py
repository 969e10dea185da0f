"""Merge-then-Adapt in the terminal: one language model, personalised for many users."""

from __future__ import annotations

__version__ = "0.1.0"
