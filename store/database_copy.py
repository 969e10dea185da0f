"""Consistent copies of the whole database while others write. Knows only the tables that record forgetting."""

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
    """Copy an open database to `path`, a new or empty file that only its owner can read, without the bytes of removed
    users.

    The store itself may still hold these bytes until its next purge. Raises OSError or sqlite3.Error.
    """
    with _full_disk_as_os_error():
        path.touch(mode=0o600)
        # VACUUM INTO leaves out free pages. The path is passed as bytes, because it may not be UTF-8.
        source.execute("VACUUM INTO CAST(? AS TEXT)", (os.fsencode(path.absolute()),))
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            if copy.execute(_PENDING_PURGE).fetchone():
                copy.execute("PRAGMA journal_mode = OFF").fetchall()  # a failed copy is deleted
                copy.execute("INSERT INTO items_fts (items_fts) VALUES ('optimize')")  # drops the words of removed rows
                copy.execute("VACUUM")
    sync_file(path)


@contextmanager
def _full_disk_as_os_error() -> Iterator[None]:
    """Raises OSError for a full disk, because the copy may lie on another disk than the store."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_FULL":
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def save_before_migration(root: Path, conn: sqlite3.Connection, schema: int) -> None:
    """Keep a copy of the database before it migrates to a newer schema; earlier copies are removed.

    Raises BadInput if the disk is full or not writable, IntegrityFault if it fails, sqlite3.Error for the database.
    """
    target = root / f"registry.schema{schema}.db"
    with replace_file(target, root / "partial") as temporary:
        copy_database(conn, temporary)
    for older in saved_databases(root):
        if older != target:
            remove_file(older)


def saved_databases(root: Path) -> list[Path]:
    """The copies that were kept before migrations, by name."""
    return sorted(root.glob(_SAVED_NAMES))


def remove_saved_databases(root: Path) -> None:
    """Remove the copies from before migrations: they hold forgotten users. Raises as `save_before_migration`."""
    for path in saved_databases(root):
        remove_file(path)
