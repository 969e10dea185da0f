"""The current schema of a store: version, tables, and the mark of its database. The SQL is `schema.sql`.

`store.migrations` migrates older stores to it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mta_cli.errors import Flag, IntegrityFault

APPLICATION_ID = 0x4D544131
"""SQLite's `application_id`, which marks a database as a store: the bytes "MTA1"."""

SCHEMA_VERSION, OLDEST_SCHEMA = 14, 13
"""The newest schema, and the oldest that this program can migrate to it."""

SCHEMA_FILE = Path(__file__).with_name("schema.sql")
"""The SQL of the current schema."""


def schema_version(conn: sqlite3.Connection) -> int:
    """The schema version of an open database; 0 for an empty one."""
    return int(conn.execute("PRAGMA user_version").fetchone()[0])


def known_schema_version(root: Path, conn: sqlite3.Connection) -> int:
    """The schema version of the store in `root`.

    Raises IntegrityFault for another program's database and for a version that this program cannot read.
    """
    found = schema_version(conn)
    ours = conn.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
    foreign = conn.execute("SELECT count(*) FROM sqlite_master WHERE name NOT GLOB '*sqlite_*'").fetchone()[0]
    if not ours and (found or foreign):
        raise IntegrityFault(
            f"{root / 'registry.db'} is a database of another program.",
            hint=("choose another directory: ", Flag("store", "DIR")),
        )
    if 0 < found < OLDEST_SCHEMA:
        raise IntegrityFault(
            f"The store at {root} was made by an old mta: it has schema {found}, and this mta reads schemas from "
            f"{OLDEST_SCHEMA} on.",
            hint=("make a new store in another directory and import the histories again: ", Flag("store", "DIR")),
        )
    if found > SCHEMA_VERSION:
        raise IntegrityFault(
            f"The store at {root} was made by a newer mta: it has schema {found}, and this mta reads schemas up to "
            f"{SCHEMA_VERSION}.",
            hint="use the newer mta",
        )
    return found
