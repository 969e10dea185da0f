"""Readers of the file formats that `mta data import` knows.

Read `reading` first; add a format in a module of its own.
"""

from __future__ import annotations

FORMATS = ("lamp", "users", "jsonl", "csv")
