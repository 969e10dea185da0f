"""What is done about a damaged database: its own words, new indexes, or a new database with all that can still be read.

Knows neither what rows mean nor whether they are sound: seals tell afterwards.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from mta_cli.errors import IntegrityFault, StoreBusy
from store.files import temporary_path
from store.integrity.check import SQLITE_READ_ERRORS, TABLES, find_structure_faults
from store.seals import SEALED, seal_of, teach
from store.version import APPLICATION_ID, SCHEMA_VERSION, schema_version

_COPIED = (*TABLES, "doomed_files")
_PARTS = "SELECT rowid, type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT GLOB '_sqlite*'"
NO_WAY = "restore registry.db from a copy of the store"

Part = tuple[str, str, str, str]
"""(type, name, table, SQL) of a table, index, view or trigger."""


def schema_faults(root: Path) -> list[str]:
    """Tables, indexes and the like whose description is not what it was, by name. Raises as `mend`."""
    with _alone(root / "registry.db") as conn:
        return [f"the description of {part[1]} in registry.db is damaged" for _, part in _damaged_parts(conn)]


def mend(root: Path) -> dict[str, int] | None:
    """Mend the database; None when it is the same one still, else how many rows of each table the new one holds.

    Raises StoreBusy while another process has it open, IntegrityFault when nothing can be read; all is then as before.
    """
    path = root / "registry.db"
    with _alone(path) as conn:
        _describe_again(conn)
    with _alone(path) as conn:
        _index_again(conn)
    if not find_structure_faults(root, index=False):
        return None
    with _alone(path) as conn:
        new = temporary_path(root / "partial")
        new.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.touch(mode=0o600)
        try:
            counts = _copy(conn, new)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    for suffix in ("-wal", "-shm"):  # the old database's log would be taken for the new one's
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    new.replace(path)
    return counts


@contextmanager
def _alone(path: Path) -> Iterator[sqlite3.Connection]:
    """The database as nobody else has it open, readable although its descriptions may be damaged."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as conn:
        conn.text_factory = lambda raw: raw.decode(errors="replace")
        try:
            conn.execute("PRAGMA writable_schema = ON")
            conn.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            if conn.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise IntegrityFault("registry.db does not say that it is a store.", hint=NO_WAY)
            conn.execute("BEGIN EXCLUSIVE")
            conn.execute("COMMIT")
        except SQLITE_READ_ERRORS as error:
            if "locked" in str(error):
                raise StoreBusy("Another process has the store open.", hint="end it, then run this again") from error
            raise IntegrityFault(f"registry.db cannot be read at all: {error}.", hint=NO_WAY) from error
        yield conn


def _damaged_parts(conn: sqlite3.Connection) -> list[tuple[int, Part]]:
    """Descriptions that are damaged: the number of each, and what it was. Only where that can be told."""
    from sqlite_utils import Database

    from store.schema import migrations

    try:
        if schema_version(conn) != SCHEMA_VERSION:
            return []
        found = {row[0]: row[1:] for row in conn.execute(_PARTS)}
    except SQLITE_READ_ERRORS:
        return []
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrations.apply(Database(fresh, execute_plugins=False))
        meant: list[Part] = [row[1:] for row in fresh.execute(_PARTS)]
    odd = {number: part for number, part in found.items() if part not in meant}
    lost = [part for part in meant if part not in found.values()]
    if len(odd) == len(lost) == 1:
        return [(next(iter(odd)), lost[0])]
    by_name = {part[1]: part for part in lost}
    return [(number, by_name[part[1]]) for number, part in odd.items() if part[1] in by_name]


def _describe_again(conn: sqlite3.Connection) -> None:
    parts = [(*part, number) for number, part in _damaged_parts(conn)]
    sql = "UPDATE sqlite_master SET type = ?, name = ?, tbl_name = ?, sql = ? WHERE rowid = ?"
    with suppress(*SQLITE_READ_ERRORS):
        conn.executemany(sql, parts)


def _index_again(conn: sqlite3.Connection) -> None:
    """Make indexes and the full-text index again, where all is well then."""
    try:
        conn.execute("BEGIN")
        conn.execute("REINDEX")
        conn.execute("INSERT INTO items_fts (items_fts) VALUES ('rebuild')")
        whole = conn.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
        conn.execute("COMMIT" if whole else "ROLLBACK")
    except SQLITE_READ_ERRORS:
        with suppress(*SQLITE_READ_ERRORS):
            conn.execute("ROLLBACK")


def _copy(old: sqlite3.Connection, path: Path) -> dict[str, int]:
    from sqlite_utils import Database

    from store.schema import migrations

    with closing(sqlite3.connect(path, isolation_level=None)) as new:
        migrations.apply(Database(new, execute_plugins=False))
        teach(new)
        new.execute("PRAGMA foreign_keys = OFF")
        new.execute("BEGIN")
        counts = {table: _copy_table(old, new, table) for table in _COPIED}
        new.execute("COMMIT")
        if not any(counts.values()):
            raise IntegrityFault("Nothing in registry.db can be read.", hint=NO_WAY)
        new.execute("PRAGMA journal_mode = WAL").fetchall()
    return counts


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    here = [row[1] for row in new.execute(f"PRAGMA table_info({table})")]
    try:
        there = {row[1] for row in old.execute(f"PRAGMA table_info({table})")}
    except SQLITE_READ_ERRORS:
        return 0
    columns = [name for name in here if name in there]
    if not columns:
        return 0
    keys = "bank_id {0}, item_id {0}" if table == "neighbours" else "rowid {0}"
    names = columns if "id" in columns or table == "neighbours" else ["rowid", *columns]
    for direction in ("ASC", "DESC"):  # around what cannot be read, from both ends
        sql = f"SELECT {', '.join(names)} FROM {table} NOT INDEXED ORDER BY {keys.format(direction)}"
        if _poured(old, sql, new, f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({_marks(names)})"):
            break
    if table in SEALED and "seal" not in there:
        new.execute(f"UPDATE {table} SET seal = {seal_of(table)}")
    return int(new.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def _poured(old: sqlite3.Connection, select: str, new: sqlite3.Connection, insert: str) -> bool:
    """Whether every row could be read; those that could were stored, if they still can be."""
    try:
        for row in old.execute(select):
            with suppress(sqlite3.Error):
                new.execute(insert, row)
    except SQLITE_READ_ERRORS:
        return False
    return True


def _marks(names: list[str]) -> str:
    return ", ".join("?" * len(names))
