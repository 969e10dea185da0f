"""Consistent copies of the whole database while other processes write.

The only tables it knows are `tombstones`, which records removals of users and items, and the full-text index.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from store.files import remove_file, replace_file, sync_file

_PENDING_PURGE = "SELECT 1 FROM tombstones WHERE NOT erased LIMIT 1"
_SAVED_NAMES = "registry.schema*.db"


def copy_database(source: sqlite3.Connection, path: Path) -> None:
    """Copy an open database to `path`, a new or empty file, without the bytes of removed users.

    Only its owner can read the file. The store itself may hold those bytes until they are purged. Raises OSError or
    sqlite3.Error.
    """
    with _full_disk_as_os_error():
        path.touch(mode=0o600)
        # VACUUM INTO leaves out free pages. The path is passed as bytes, because it may not be UTF-8.
        source.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(path.absolute()),))
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            if copy.execute(_PENDING_PURGE).fetchone():
                copy.execute("PRAGMA journal_mode = OFF").fetchall()  # a failed copy is deleted
                copy.execute("INSERT INTO items_fts (items_fts) VALUES ('optimize')")  # removes words of deleted rows
                copy.execute("VACUUM")
    sync_file(path)


@contextmanager
def _full_disk_as_os_error() -> Iterator[None]:
    """In the block, a full disk raises OSError, because the copy may lie on another disk than the store."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def save_database_before_migration(root: Path, conn: sqlite3.Connection, schema: int) -> None:
    """Save a copy of the database of this `schema` before its migration, and remove the copies of earlier migrations.

    Raises BadInput if the disk is full or not writable, IntegrityFault if the disk fails, sqlite3.Error for the
    database.
    """
    target = root / f"registry.schema{schema}.db"
    with replace_file(target, root / "partial") as temporary:
        copy_database(conn, temporary)
    for older in databases_saved_before_migration(root):
        if older != target:
            remove_file(older)


def databases_saved_before_migration(root: Path) -> list[Path]:
    """The paths of database copies that were saved before migrations, sorted."""
    return sorted(root.glob(_SAVED_NAMES))


def remove_databases_saved_before_migration(root: Path) -> None:
    """Remove the database copies that were saved before migrations, because they contain data of removed users.

    Raises BadInput or IntegrityFault if one cannot be removed.
    """
    for path in databases_saved_before_migration(root):
        remove_file(path)
