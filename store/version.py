"""Marks a database as a store, with its schema. Knows no tables: `schema` makes them."""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x4D544131
"""SQLite's `application_id` of a store: "MTA1"."""

SCHEMA_VERSION = 10
"""The newest schema that this program knows: the number of migrations in `schema`."""


def schema_version(conn: sqlite3.Connection) -> int:
    """The schema of an open store; 0 for an empty database."""
    return int(conn.execute("PRAGMA user_version").fetchone()[0])
