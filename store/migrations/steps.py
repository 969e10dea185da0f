"""The steps from an empty database to today's schema, in order. A released step never changes.

Each sets SQLite's `user_version`, so that an older program refuses a newer store with a clear message. The first step
has the name of the last of those that it took the place of: stores that have it are left alone.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from store.migrations.script import execute_script

migrations = Migrations("mta")


def migrate(conn: sqlite3.Connection) -> None:
    """Bring a database to today's schema: all missing steps or none. Foreign keys must be off: tables may be rebuilt.

    The database is empty, or of `OLDEST_SCHEMA` or later.
    """
    db = Database(conn, recursive_triggers=False, execute_plugins=False)
    with db.atomic():
        migrations.apply(db)


def _add_script(version: int, file: str, name: str) -> None:
    @migrations(name=name)
    def run_script(db: Database) -> None:
        script = Path(__file__).with_name(file).read_text(encoding="utf-8")
        execute_script(db.conn, f"{script}\nPRAGMA user_version = {version};\n")


_add_script(13, "m013_schema.sql", "m013_recipe_items")
_add_script(14, "m014_ladder.sql", "m014_ladder")
