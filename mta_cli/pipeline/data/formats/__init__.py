"""Readers of the file formats that `mta data import` knows.

Read `reading` first; add a format in a module of its own.
"""

FORMATS = ("lamp", "users", "jsonl", "csv")
