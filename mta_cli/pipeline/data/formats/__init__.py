"""Readers of the file formats that `mta data import` knows.

Read `reading` first; add a format in a module of its own.
"""

from __future__ import annotations

FORMATS = {
    "lamp": "LaMP's questions, with --outputs also its answers",
    "users": "one JSON list of users with profile and held-out queries",
    "jsonl": "one JSON record a line: user, input, output; id, time and task when known",
    "csv": "the same records as a table with a header line",
}
