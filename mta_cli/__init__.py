"""Merge-then-Adapt in the terminal: one language model, personal for many people."""

from __future__ import annotations

__version__ = "0.1.0"
