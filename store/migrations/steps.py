"""The steps from an empty database to today's schema, in order. A released step never changes.

A step is an SQL script, or a module where SQL is not enough. Each sets SQLite's `user_version`, so that an older
program refuses a newer store with a clear message.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from store.migrations import m009_relations
from store.migrations.script import execute_script

migrations = Migrations("mta")


def migrate(conn: sqlite3.Connection) -> None:
    """Bring a database to today's schema: all missing steps or none. Foreign keys must be off: tables are rebuilt."""
    db = Database(conn, recursive_triggers=False, execute_plugins=False)
    with db.atomic():
        migrations.apply(db)


def _add_script(version: int, name: str) -> None:
    @migrations(name=name)
    def run_script(db: Database) -> None:
        script = Path(__file__).with_name(f"{name}.sql").read_text(encoding="utf-8")
        execute_script(db.conn, f"{script}\nPRAGMA user_version = {version};\n")


_add_script(1, "m001_people")
_add_script(2, "m002_training")
_add_script(3, "m003_records")
_add_script(4, "m004_evaluation")
_add_script(5, "m005_cores")
_add_script(6, "m006_neighbours")
_add_script(7, "m007_seals")
_add_script(8, "m008_integrity")


@migrations(name="m009_relations")
def _run_relations(db: Database) -> None:
    m009_relations.migrate(db.conn)
    db.conn.execute("PRAGMA user_version = 9")


_add_script(10, "m010_preset_banks")
_add_script(11, "m011_held_runs")
_add_script(12, "m012_task_adapter_users")
_add_script(13, "m013_recipe_items")
_add_script(14, "m014_ladder")
