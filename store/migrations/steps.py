"""The steps that migrate older schemas to the current one, in order. A released step never changes.

A new step needs its script, a line here, the same change in `schema.sql` (new columns last) and a higher
`SCHEMA_VERSION`.

A new store is made from `schema.sql`, and all steps count as done. Each step sets SQLite's `user_version`, so that an
older program refuses a newer store with a clear message.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from store.schema import APPLICATION_ID, SCHEMA_FILE, SCHEMA_VERSION, schema_version

migrations = Migrations("mta")


def migrate(conn: sqlite3.Connection) -> None:
    """Migrate a database, empty or of `OLDEST_SCHEMA` or later, to the current schema: all missing steps or none.

    Foreign keys must be off, because steps may rebuild tables.
    """
    db = Database(conn, recursive_triggers=False, execute_plugins=False)
    with db.atomic():
        if schema_version(conn) == 0:
            marks = f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {SCHEMA_VERSION};\n"
            execute_script(conn, SCHEMA_FILE.read_text(encoding="utf-8") + marks)
        migrations.apply(db)


def execute_script(conn: sqlite3.Connection, script: str) -> None:
    """Execute every statement of a script within the open transaction, which `executescript` would commit first.

    Each statement ends at the end of a line.
    """
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            conn.execute(statement)
            statement = ""


def _add_script(version: int, name: str) -> None:
    @migrations(name=name)
    def run_script(db: Database) -> None:
        if schema_version(db.conn) < version:
            script = Path(__file__).with_name(f"{name}.sql").read_text(encoding="utf-8")
            execute_script(db.conn, f"{script}\nPRAGMA user_version = {version};\n")


_add_script(14, "m014_ladder")
