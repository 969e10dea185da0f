"""Whether the store is what it says: database, full-text index, references, files. Repairs nothing."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from mta_cli.errors import IntegrityFault, MtaError
from store.connection import Connection, sqlite_uri
from store.files import AdapterFiles
from store.tables.recipes_and_stacks import unpack_anchor_weights
from store.version import SCHEMA_VERSION, schema_version

TABLES = (
    "users",
    "items",
    "queries",
    "profiles",
    "bases",
    "tasks",
    "adapters",
    "banks",
    "anchors",
    "neighbours",
    "recipes",
    "stacks",
    "runs",
    "steps",
    "evaluations",
    "eval_people",
    "eval_banks",
    "cells",
    "tunings",
    "predictions",
    "chats",
    "messages",
    "tombstones",
)

_STRUCTURE = """SELECT type, name, tbl_name, sql FROM sqlite_master
WHERE name NOT GLOB 'sqlite_*' AND name != '_sqlite_migrations'"""


def count_rows(db: Connection) -> dict[str, int]:
    """How many rows each table has."""
    return {table: int(db.fetch_value(f"SELECT count(*) FROM {table}")) for table in TABLES}


def find_problems(db: Connection, files: AdapterFiles) -> list[str]:
    """Everything that is wrong, a line each; empty when all is well."""
    found: list[str] = []
    for check in (
        _check_database(db),
        _check_fulltext_index(db),
        _check_recipes(db),
        _check_cores(db),
        _check_files(db, files),
    ):
        try:
            found.extend(check)
        except MtaError as error:
            found.append(error.message)
    return found


def find_structure_faults(root: Path) -> list[str]:
    """What is wrong with the database itself and its full-text index.

    Looked for in a copy, so that nobody who writes has to wait, and from any thread. SQLite keeps it in memory while it
    is small, else in a temporary file of its own.
    """
    place = sqlite_uri(root / "registry.db", os.access(root, os.W_OK))
    try:
        with closing(sqlite3.connect(place, uri=True)) as conn, closing(sqlite3.connect("")) as copy:
            conn.backup(copy)
            copy.text_factory = lambda raw: raw.decode(errors="replace")
            lines = [line for (line,) in copy.execute("PRAGMA integrity_check(20)") if line != "ok"]
            lines += _schema_mismatches(copy)
            if not lines:
                copy.execute("INSERT INTO items_fts (items_fts, rank) VALUES ('integrity-check', 1)")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # SQLite's own words may hold what is no text any more
        lines = [str(error)]
    return [f"registry.db is damaged: {line}" for line in lines]


def _schema_mismatches(conn: sqlite3.Connection) -> list[str]:
    """Tables whose columns are not those that the migrations make: SQLite takes another letter case for the same."""
    if schema_version(conn) != SCHEMA_VERSION:
        return []
    expected = _expected_columns()
    return [f"the columns of {name} are not its own" for name in TABLES if _table_info(conn, name) != expected[name]]


@cache
def _expected_columns() -> dict[str, list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(":memory:")) as conn:
        _make_schema(conn)
        return {name: _table_info(conn, name) for name in TABLES}


def _table_info(conn: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    return conn.execute(f"PRAGMA table_info({table})").fetchall()


def find_foreign_parts(root: Path) -> list[str]:
    """Tables, indexes, views and triggers that the migrations do not make, and those that are missing or changed."""
    with closing(sqlite3.connect(root / "registry.db")) as conn, closing(sqlite3.connect(":memory:")) as fresh:
        _make_schema(fresh)
        found, expected = set(conn.execute(_STRUCTURE)), set(fresh.execute(_STRUCTURE))
    return sorted(f"its {part[0]} {str(part[1])[:80]} is not as a store's" for part in found ^ expected)


def _make_schema(conn: sqlite3.Connection) -> None:
    from sqlite_utils import Database

    from store.schema import migrations

    migrations.apply(Database(conn, execute_plugins=False))


def _check_database(db: Connection) -> Iterator[str]:
    for (line,) in db.fetch_tuples("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"registry.db is damaged: {line}"
    for table, row, parent, _ in itertools.islice(db.fetch_tuples("PRAGMA foreign_key_check"), 20):
        yield f"row {row} of {table} refers to a row of {parent} that is not there"


def _check_fulltext_index(db: Connection) -> Iterator[str]:
    if fault := find_index_fault(db):
        yield f"the full-text index does not agree with the items: {fault}"


def find_index_fault(db: Connection) -> str:
    """Where the full-text index does not agree with the items; empty where it does, or cannot be checked.

    SQLite checks the index by a writing statement.
    """
    if not db.writable:
        return ""
    try:
        db.execute_write("INSERT INTO items_fts (items_fts, rank) VALUES ('integrity-check', 1)")
    except IntegrityFault as error:
        return str(error.__cause__)
    return ""


def _check_recipes(db: Connection) -> Iterator[str]:
    anchors = set(db.fetch_tuples("SELECT id, bank_id FROM anchors"))
    for table, column in (("recipes", "shares"), ("stacks", "recipe")):
        for user, bank, packed in db.fetch_tuples(f"SELECT user_id, bank_id, {column} FROM {table}"):
            if not isinstance(packed, bytes) or len(packed) % 12:
                yield f"the recipe of user number {user} in {table} is damaged"
                continue
            lost = [
                share.anchor_id for share in unpack_anchor_weights(packed) if (share.anchor_id, bank) not in anchors
            ]
            if lost:
                yield f"the recipe of user number {user} in {table} names anchors that are not there: {lost}"


def _check_cores(db: Connection) -> Iterator[str]:
    sql = "SELECT user_id FROM stacks WHERE numbers IS NOT NULL AND (length(numbers) != bytes OR length(numbers) % 2)"
    for (user,) in db.fetch_tuples(sql):
        yield f"the core of user number {user} is damaged"


def _check_files(db: Connection, files: AdapterFiles) -> Iterator[str]:
    known = {digest for (digest,) in db.fetch_tuples("SELECT CAST(digest AS TEXT) FROM adapters")}
    for digest in sorted(known):
        try:
            files.verify(digest)
        except MtaError as error:
            yield error.message
    for path in files.find_orphans(known):
        yield f"{path} belongs to no adapter of the store"
    for path in files.abandoned_temporaries():
        yield f"{path} is left over from a write that was stopped"
