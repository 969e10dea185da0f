"""Finds damage in a store's database, full-text index, references and files. Repairs nothing."""

from __future__ import annotations

import itertools
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from mta_cli.errors import IntegrityFault, MtaError
from store.connection import Connection, sqlite_uri
from store.files import AdapterFiles
from store.records import is_core_intact
from store.schema import SCHEMA_FILE
from store.tables.recipes_and_stacks import RECIPE_ENTRY_BYTES

_CORES_AT_ONCE = 10_000  # rows read at once: the cores of a million users would take most of a gigabyte of memory
# SQLite's own indexes and statistics and the record of migrations are not compared. They are recognised by their SQL,
# not their name: SQLite itself uses only the SQL, so a changed name must not hide a table from the comparison.
_STRUCTURE = """SELECT type, name, tbl_name, sql FROM sqlite_master
WHERE sql IS NOT NULL AND sql NOT GLOB 'CREATE TABLE sqlite_stat[14](*'
    AND sql NOT GLOB 'CREATE TABLE "_sqlite_migrations" (*'
    AND sql NOT GLOB 'CREATE UNIQUE INDEX "idx__sqlite_migrations_*'"""


def count_rows(db: Connection) -> dict[str, int]:
    """The number of rows of each table, by table name."""
    tables = re.findall(r'^CREATE TABLE "?(\w+)', SCHEMA_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: int(db.fetch_value(f"SELECT count(*) FROM {name}")) for name in tables if name != "doomed_files"}


def find_problems(db: Connection, files: AdapterFiles, *, names: bool = True) -> list[str]:
    """Every fault of the store, one line each; empty for a sound store. Without `names`, users are named by id.

    At most 20 damaged pages and 20 broken references are listed.
    """
    return find_database_problems(db, names=names) + _collect(_check_files(db, files), _check_unerased_removals(db))


def find_database_problems(db: Connection, *, names: bool = True) -> list[str]:
    """Every fault of the database, one line each; files are not checked. Without `names`, users are named by id."""
    user_sql = "users.name" if names else "'user number ' || users.id"
    return _collect(
        _check_database(db), _check_fulltext_index(db), _check_recipes(db, user_sql), _check_cores(db, user_sql)
    )


def _collect(*checks: Iterator[str]) -> list[str]:
    found: list[str] = []
    for check in checks:
        try:
            found.extend(check)
        except MtaError as error:
            found.append(str(error))
    return found


def find_structure_faults(root: Path) -> list[str]:
    """Damage of the database file and of its full-text index, one line each.

    Checks a copy, so that writers need not wait, and works from any thread. SQLite keeps a small copy in memory and a
    large one in a temporary file.
    """
    place = sqlite_uri(root / "registry.db", os.access(root, os.W_OK))
    try:
        with closing(sqlite3.connect(place, uri=True)) as conn, closing(sqlite3.connect("")) as copy:
            conn.backup(copy)
            copy.text_factory = lambda raw: raw.decode(errors="replace")
            lines = [line for (line,) in copy.execute("PRAGMA integrity_check(20)") if line != "ok"]
            lines += _describe(_expected_objects() - _schema_objects(copy))
            if not lines:
                copy.execute("INSERT INTO items_fts (items_fts, rank) VALUES ('integrity-check', 1)")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter if SQLite's message contains damaged text
        lines = [str(error)]
    return [f"registry.db is damaged: {line}" for line in lines]


def find_schema_differences(root: Path) -> list[str]:
    """A line for each table, index, view and trigger that is missing, changed or not in the current schema."""
    with closing(sqlite3.connect(root / "registry.db")) as conn:
        return _describe(_schema_objects(conn) ^ _expected_objects())


def _describe(objects: set[tuple[str, ...]]) -> list[str]:
    return sorted({f"its {part[0]} {str(part[1])[:80]} differs from a store's schema" for part in objects})


def _expected_objects() -> set[tuple[str, ...]]:
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(SCHEMA_FILE.read_text(encoding="utf-8"))
        return _schema_objects(fresh)


def _schema_objects(conn: sqlite3.Connection) -> set[tuple[str, ...]]:
    return {(*part, " ".join(sql.replace(",", " , ").split())) for *part, sql in conn.execute(_STRUCTURE)}


def _check_database(db: Connection) -> Iterator[str]:
    for (line,) in db.fetch_tuples("PRAGMA integrity_check(20)"):
        if line != "ok":
            yield f"registry.db is damaged: {line}"
    for table, row, parent, _ in itertools.islice(db.fetch_tuples("PRAGMA foreign_key_check"), 20):
        yield f"row {row} of table {table} refers to a missing row of table {parent}"


def _check_fulltext_index(db: Connection) -> Iterator[str]:
    if fault := find_index_fault(db):
        yield f"the full-text index differs from the items: {fault}"


def find_index_fault(db: Connection) -> str:
    """SQLite's message if the full-text index differs from the items; empty if it agrees or the store cannot be
    written.

    SQLite checks the index with a write. Raises the errors of that write, except the one for a damaged index.
    """
    if not db.writable:
        return ""
    try:
        db.execute_write("INSERT INTO items_fts (items_fts, rank) VALUES ('integrity-check', 1)")
    except IntegrityFault as error:
        if not getattr(error.__cause__, "sqlite_errorname", "").startswith("SQLITE_CORRUPT"):
            raise
        return str(error.__cause__)
    return ""


def _check_recipes(db: Connection, user_sql: str) -> Iterator[str]:
    key = "a.user_id = r.user_id AND a.task = r.task AND a.bank_id = r.bank_id"
    sizes = f"""SELECT {user_sql}, r.task FROM recipes AS r JOIN users ON users.id = r.user_id
    WHERE bytes != {RECIPE_ENTRY_BYTES} * (SELECT count(*) FROM recipe_anchors AS a WHERE {key})"""
    for name, task in db.fetch_tuples(sizes):
        yield f"the recipe of {name} for task {task} lacks some of its anchors"
    for table in ("recipe_anchors", "stack_anchors"):
        others = f"""SELECT DISTINCT {user_sql}, a.task FROM {table} AS a JOIN users ON users.id = a.user_id
        JOIN anchors ON anchors.id = anchor_id WHERE anchors.bank_id != a.bank_id"""
        for name, task in db.fetch_tuples(others):
            yield f"the recipe of {name} for task {task} in table {table} refers to anchors of another bank"


def _check_cores(db: Connection, user_sql: str) -> Iterator[str]:
    sql = f"""SELECT {user_sql}, task, numbers, numbers_sha256, stacks.rowid FROM stacks
    JOIN users ON users.id = user_id WHERE numbers IS NOT NULL AND stacks.rowid > ?
    ORDER BY stacks.rowid LIMIT {_CORES_AT_ONCE}"""
    last = 0
    while page := db.fetch_tuples(sql, (last,)):
        for name, task, numbers, digest, _ in page:
            if not is_core_intact(numbers, digest):
                yield f"the stack of {name} for task {task} is damaged: its numbers do not match their SHA-256"
        last = page[-1][-1]


def _check_files(db: Connection, files: AdapterFiles) -> Iterator[str]:
    known = {digest for (digest,) in db.fetch_tuples("SELECT CAST(digest AS TEXT) FROM adapters")}
    for digest in sorted(known):
        try:
            files.verify(digest)
        except MtaError as error:
            yield str(error)
    for path in files.find_orphans(known):
        yield f"{path} is a file of no recorded adapter"
    for path in files.find_abandoned_temporaries():
        yield f"{path} is a temporary file of a process that has ended"


def _check_unerased_removals(db: Connection) -> Iterator[str]:
    """Removals whose bytes are not overwritten yet, although every opening of the store tries to overwrite them."""
    removals = db.fetch_value("SELECT count(*) FROM tombstones WHERE NOT erased")
    files = db.fetch_value("SELECT count(*) FROM doomed_files")
    owed = [f"{removals:,} removed users or items"] * bool(removals) + [f"{files:,} files of removed adapters"] * bool(
        files
    )
    if owed:
        yield (
            f"bytes of {' and '.join(owed)} are still on the disk: free space or end other mta processes, then run any "
            "mta command, which erases them"
        )
