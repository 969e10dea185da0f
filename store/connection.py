"""One connection to the store's database: opening it, transactions, and translating SQLite's errors.

Knows neither tables nor rows. Only migrating imports sqlite-utils, because that loads numpy and pandas.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, MtaError, NotFound, StoreBusy
from store.database_copy import copy_database, save_database_before_migration
from store.process_lock import process_lock
from store.schema import SCHEMA_VERSION, known_schema_version, schema_version

MIN_SQLITE_VERSION = (3, 35, 0)
COPY_MARKER = "snapshot.json"
"""The file name of a snapshot's manifest. A store with this file is a read-only copy that `mta pull` made."""

# Sorting and indexing stay in memory: SQLite's temporary files would keep texts of users who are removed later.
_TEMPORARIES_IN_MEMORY = "PRAGMA temp_store = MEMORY"

SqlParameters = Sequence[Any] | Mapping[str, Any]


@functools.cache
def check_sqlite() -> None:
    """Raises BadInput when this Python's SQLite is too old or has no full-text search."""
    if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
        needed = ".".join(map(str, MIN_SQLITE_VERSION))
        raise BadInput(
            f"This Python has SQLite {sqlite3.sqlite_version}; a store needs at least {needed}.",
            hint="use a newer Python",
        )
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        try:
            conn.execute("CREATE VIRTUAL TABLE probe USING fts5(word)")
        except sqlite3.OperationalError as error:
            raise BadInput(
                "This Python's SQLite has no FTS5 full-text search.", hint="use another build of Python"
            ) from error


class Connection:
    """An open database in which each statement commits by itself; several writes go through `transaction`.

    Only the thread that opened it may use it.
    """

    def __init__(self, root: Path, conn: sqlite3.Connection, *, timeout: float, writable: bool) -> None:
        self.root, self.timeout, self.writable = root, timeout, writable
        self._conn = conn
        self._identity = _file_identity(root)
        self._after_commit: list[Callable[[], None]] = []

    @classmethod
    def open(cls, root: Path, *, create: bool, timeout: float) -> Connection:
        """Open the database in `root` and migrate it to the newest schema. Raises the errors of `Registry.open`."""
        check_sqlite()
        path = root / "registry.db"
        _ensure_database_file(root, path, create=create)
        writable = os.access(root, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        is_copy = is_pulled_copy(root)
        with translate_sqlite_errors(root, timeout):
            try:
                conn = _open_if_current_schema(root, timeout, writable, create=create)
            except sqlite3.OperationalError as error:
                if writable or not _log_path(path).exists():
                    raise
                raise _unreadable_log_error(root) from error
            if conn is None:
                if is_copy:
                    raise BadInput(
                        f"The store at {root} is a copy of a snapshot that an older mta made.",
                        hint=("make a new snapshot with this version of mta, then run ", Command("pull"), " here"),
                    )
                if not writable:
                    raise _unwritable_error(root)
                with process_lock(root, "schema", timeout, "migrating the store to the newest schema"):
                    conn = _open_if_current_schema(root, timeout, writable, create=create)
                    if conn is None:
                        _migrate_schema(root, timeout)
                        conn = _open_if_current_schema(root, timeout, writable, create=create)
                        assert conn is not None
        if is_copy:
            conn.execute("PRAGMA query_only = ON")
        return cls(root, conn, timeout=timeout, writable=writable and not is_copy)

    def close(self) -> None:
        """Close the connection. Closing it twice is harmless."""
        self._conn.close()

    def require_not_moved(self) -> None:
        """Raises IntegrityFault if the store's path no longer leads to the database file that was opened."""
        if _file_identity(self.root) != self._identity:
            raise IntegrityFault(
                f"The store at {self.root} was moved or replaced during the command; its last change was not stored.",
                hint=("run the command again, with the store's new place: ", Flag("store", "DIR")),
            )

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._conn.in_transaction)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes in the block are committed together or not at all; an inner transaction joins the outer one.

        Raises StoreBusy when another process writes for longer than the timeout. Raises IntegrityFault when the store's
        directory was moved, because its adapter files would be written elsewhere. An error raised by an action after
        the commit says that the data are stored.
        """
        if self.in_transaction:
            with self._savepoint():
                yield
            return
        self._require_writable()
        self.require_not_moved()
        with self._translate_errors():
            self._conn.execute("BEGIN IMMEDIATE")
        try:
            if (found := schema_version(self._conn)) > SCHEMA_VERSION:
                raise IntegrityFault(
                    f"A newer mta has just migrated the store at {self.root} to schema {found}; nothing was written.",
                    hint="run the command again with the newer mta",
                )
            yield
            self.require_not_moved()
            with self._translate_errors():
                self._conn.execute("COMMIT")
        except BaseException:
            self._after_commit.clear()
            if self.in_transaction:
                self._conn.execute("ROLLBACK")
            raise
        waiting, self._after_commit = self._after_commit, []
        faults = [fault for action in waiting if (fault := _run_after_commit(action)) is not None]
        if faults:
            raise faults[0]

    @contextlib.contextmanager
    def _savepoint(self) -> Iterator[None]:
        self._conn.execute("SAVEPOINT inner")
        try:
            yield
        except BaseException:
            if self.in_transaction:  # some errors, such as a full disk, end the whole transaction
                self._conn.execute("ROLLBACK TO inner")
                self._conn.execute("RELEASE inner")
            raise
        self._conn.execute("RELEASE inner")

    def after_commit(self, action: Callable[[], None]) -> None:
        """Call `action` after the open transaction commits, or now if none is open; after a rollback it is dropped."""
        if self.in_transaction:
            self._after_commit.append(action)
        else:
            action()

    def fetch_dicts(self, sql: str, parameters: SqlParameters = ()) -> list[dict[str, Any]]:
        """All rows of a query as dicts from column name to value."""
        with self._translate_errors():
            cursor = self._conn.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def fetch_tuples(self, sql: str, parameters: SqlParameters = ()) -> list[tuple[Any, ...]]:
        """All rows of a query as tuples in column order."""
        with self._translate_errors():
            return self._conn.execute(sql, parameters).fetchall()

    def fetch_dict(self, sql: str, parameters: SqlParameters = ()) -> dict[str, Any] | None:
        """The first row of a query as a dict; None when there is no row."""
        found = self.fetch_dicts(sql, parameters)
        return found[0] if found else None

    def fetch_value(self, sql: str, parameters: SqlParameters = ()) -> Any:
        """The first column of the first row of a query; None when there is no row."""
        found = self.fetch_tuples(sql, parameters)
        return found[0][0] if found else None

    def execute_write(self, sql: str, parameters: SqlParameters = ()) -> sqlite3.Cursor:
        """Execute one writing statement, in a transaction of its own if none is open."""
        with self.transaction(), self._translate_errors():
            return self._conn.execute(sql, parameters)

    def insert_row(self, table: str, values: Mapping[str, Any]) -> int:
        """Insert one row, given as values by column name; returns its row id."""
        places = ", ".join(f":{name}" for name in values)
        row = self.execute_write(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", values).lastrowid
        assert row is not None
        return row

    def execute_write_many(self, sql: str, parameters: Iterable[SqlParameters]) -> int:
        """Execute one writing statement for every parameter set; returns how many rows it changed."""
        with self.transaction(), self._translate_errors():
            return max(0, self._conn.executemany(sql, parameters).rowcount)

    @contextlib.contextmanager
    def without_busy_timeout(self) -> Iterator[None]:
        """In the block, operations that would wait for another process raise StoreBusy at once."""
        self._conn.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            self._conn.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")

    def vacuum(self) -> None:
        """Rewrite the database and empty its log, to erase the bytes of deleted rows. Raises StoreBusy while others
        read.

        SQLite copies the remaining rows to a temporary file, because the database may be larger than the memory.
        """
        self._require_writable()
        with self._translate_errors():
            self._conn.execute("PRAGMA temp_store = FILE")
            try:
                self._conn.execute("VACUUM")
            finally:
                self._conn.execute(_TEMPORARIES_IN_MEMORY)
            busy, _, _ = self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreBusy(
                "Another process is reading the store, so SQLite's log cannot be emptied.",
                hint="end that process, then run any mta command: it empties the log",
            )

    def copy_to(self, path: Path) -> None:
        """Copy a consistent state of the database to a new file while others write.

        Raises OSError if that file cannot be written.
        """
        with self._translate_errors():
            self._conn.execute("PRAGMA query_only = OFF")  # otherwise SQLite refuses VACUUM INTO as a write
            try:
                copy_database(self._conn, path)
            finally:
                self._conn.execute(f"PRAGMA query_only = {not self.writable:d}")

    def _translate_errors(self) -> contextlib.AbstractContextManager[None]:
        return translate_sqlite_errors(self.root, self.timeout)

    def _require_writable(self) -> None:
        if not self.writable:
            raise _unwritable_error(self.root)


def is_pulled_copy(root: Path) -> bool:
    """Whether the store in `root` is a copy of a snapshot, which only `mta pull` may change."""
    return (root / COPY_MARKER).exists()


def _file_identity(root: Path) -> tuple[int, int] | None:
    """Device and inode number of the database file in `root`; None if there is no file."""
    try:
        found = os.stat(root / "registry.db")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _ensure_database_file(root: Path, path: Path, *, create: bool) -> None:
    try:
        if path.is_file():
            return
        if not create:
            raise NotFound(f"There is no store at {root}.", hint=Command("init"))
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)  # only the owner may read users' texts, even in a folder that others can read
    except OSError as error:
        raise BadInput(
            f"A store cannot be made at {root}: {error.strerror}.",
            hint=("choose another directory: ", Flag("store", "DIR")),
        ) from error


def _log_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def sqlite_uri(path: Path, writable: bool) -> str:
    """The database's path as an SQLite URI; read-only unless `writable`."""
    if writable:
        return path.absolute().as_uri()
    log = _log_path(path)
    # Without write access SQLite cannot make the index of its log. An empty or missing log means that the database file
    # has all committed data; `immutable` then lets SQLite read it without the index.
    still = not log.exists() or log.stat().st_size == 0
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if still else ''}"


def _open_if_current_schema(root: Path, timeout: float, writable: bool, *, create: bool) -> sqlite3.Connection | None:
    """The open database if it has the newest schema; None, with the database closed, if it is new or older."""
    conn = _connect(root, timeout, writable)
    try:
        found = known_schema_version(root, conn)
        if found == 0 and not create:
            raise IntegrityFault(
                f"The database of the store at {root} is empty.",
                hint=(Command("restore", "FILE"), " replaces it by a backup; ", Command("init"), " makes a new store"),
            )
        if writable and found == SCHEMA_VERSION:
            # A restored database is not in WAL mode. If another process uses it now, a later opening switches the mode.
            with contextlib.suppress(sqlite3.OperationalError):
                conn.execute("PRAGMA journal_mode = WAL").fetchall()
    except BaseException:
        conn.close()
        raise
    if found == SCHEMA_VERSION:
        return conn
    conn.close()
    return None


def _connect(root: Path, timeout: float, writable: bool) -> sqlite3.Connection:
    uri = sqlite_uri(root / "registry.db", writable)
    conn = sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)
    try:
        # SQLite's own `lower` changes only A to Z
        conn.create_function("unicode_lower", 1, str.lower, deterministic=True)
        for pragma in (
            f"busy_timeout = {int(timeout * 1000)}",
            "foreign_keys = ON",
            "recursive_triggers = ON",
            "secure_delete = ON",
            "synchronous = FULL",
            "trusted_schema = OFF",
        ):
            conn.execute(f"PRAGMA {pragma}")
        conn.execute(_TEMPORARIES_IN_MEMORY)
        if not writable:
            conn.execute("PRAGMA query_only = ON")
    except BaseException:
        conn.close()
        raise
    return conn


def _migrate_schema(root: Path, timeout: float) -> None:
    """Migrate the store while no other process has it open, because an older program would keep writing to it.

    Raises StoreBusy when another process has it open for longer than the timeout.
    """
    from store.migrations.steps import migrate

    with contextlib.closing(_connect(root, timeout, writable=True)) as conn:
        conn.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()  # before the first read, to exclude readers too
        try:
            conn.execute("BEGIN EXCLUSIVE")
            conn.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if (getattr(error, "sqlite_errorname", "") or "").startswith("SQLITE_BUSY"):
                raise StoreBusy(
                    f"The store at {root} must be migrated to schema {SCHEMA_VERSION}; another process has it open.",
                    hint="end that process, perhaps a window or a chat of an older mta, then run the command again",
                ) from error
            raise
        mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise BadInput(
                f"The file system of {root} cannot hold a store: SQLite's log mode is {mode}, not wal.",
                hint=("choose a directory on a local disk: ", Flag("store", "DIR")),
            )
        if (found := schema_version(conn)) > 0:
            save_database_before_migration(root, conn, found)
        conn.execute("PRAGMA foreign_keys = OFF")  # some migrations drop and rebuild tables
        migrate(conn)


def _run_after_commit(action: Callable[[], None]) -> MtaError | None:
    """Run an action after a commit; if it fails, returns an error that says what is done and what remains to be
    done.
    """
    try:
        action()
    except MtaError as error:
        before = "let the other process end" if isinstance(error, StoreBusy) else "remove this cause"
        owed = type(error)(
            ("The change is done, but bytes of removed data are still on the disk: ", error.message),
            hint=f"{before}, then run any mta command: it erases these bytes",
        )
        owed.__cause__ = error
        return owed
    return None


def _unwritable_error(root: Path) -> BadInput:
    if is_pulled_copy(root):
        return BadInput(
            f"The store at {root} is a copy of a snapshot, which cannot be changed.",
            hint=(
                "change the store that the snapshot is made from; then run ",
                Command("snapshot"),
                " there and ",
                Command("pull"),
                " here",
            ),
        )
    if _is_read_only(root):
        return BadInput(
            f"The store at {root} cannot be written: its file system is read-only.",
            hint=("make it writable, or choose another directory: ", Flag("store", "DIR")),
        )
    return BadInput(f"The store at {root} cannot be written.", hint="check the permissions of its directory")


def _is_read_only(root: Path) -> bool:
    try:
        return bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    except (AttributeError, OSError):
        return False


def _unreadable_log_error(root: Path) -> BadInput:
    return BadInput(
        f"The store at {root} cannot be read: its last changes are in registry.db-wal, which SQLite reads only in a "
        "writable directory. The store is not damaged.",
        hint="make the directory writable, or copy it to a disk where you may write",
    )


@contextlib.contextmanager
def translate_sqlite_errors(root: Path, timeout: float) -> Iterator[None]:
    """In the block, errors of SQLite become MtaErrors with a message and a hint."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _to_mta_error(root, timeout, error) from error
    except UnicodeDecodeError as error:  # raised for a table's or column's name that is not UTF-8
        raise IntegrityFault(
            f"The store at {root} is damaged: its tables have names that are not valid text.",
            hint=(Command("restore", "FILE"), " replaces it by a backup"),
        ) from error
    except MemoryError as error:
        raise BadInput(
            "There is too little memory to read the store.", hint="close other programs and run the command again"
        ) from error
    except OverflowError as error:
        raise BadInput(
            "A number is too large for the store.", hint=f"whole numbers go from {-(2**63)} to {2**63 - 1}"
        ) from error
    except UnicodeEncodeError as error:
        raise BadInput(
            "A text cannot be stored: it has half of a surrogate pair, which is not valid Unicode.",
            hint="repair the encoding of the text's file",
        ) from error


def _to_mta_error(root: Path, timeout: float, error: sqlite3.Error) -> MtaError:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreBusy(
            f"Another process has been writing to the store for more than {timeout:g} s.",
            hint="wait until it has ended, then run the command again",
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
        return _unwritable_error(root)
    if name.startswith("SQLITE_FULL"):
        return BadInput(
            "The disk is full: the last write to the store was undone.",
            hint="free some space, then run the command again",
        )
    if name.startswith("SQLITE_IOERR"):
        return IntegrityFault(
            f"The disk failed while the store at {root} was used: {error}.",
            hint=("check the disk, then run ", Command("doctor")),
        )
    if name.startswith("SQLITE_CONSTRAINT"):
        return IntegrityFault(
            f"The data to be stored contradict the data in the store at {root}: {error}.",
            hint=(Command("doctor"), " checks the store"),
        )
    if name.startswith("SQLITE_TOOBIG"):
        return BadInput(
            "A text is longer than the 1,000,000,000 bytes that SQLite takes.", hint="split it into several items"
        )
    said = str(error).partition(" with text ")[0]  # keep the message, drop the damaged text
    return IntegrityFault(
        f"The store at {root} cannot be used: {said}.",
        hint=(Command("doctor"), " says what is damaged; ", Command("restore", "FILE"), " replaces it by a backup"),
    )
