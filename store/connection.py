"""One connection to the registry's database: opening it, transactions, and translating SQLite's errors.

Knows neither tables nor rows. Only migrating imports sqlite-utils, which loads numpy and pandas.
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
from store.database_copy import copy_database, save_before_migration
from store.process_lock import process_lock
from store.schema import SCHEMA_VERSION, known_schema_version, schema_version

MIN_SQLITE_VERSION = (3, 35, 0)
COPY_MARKER = "snapshot.json"
"""The snapshot's manifest. A store with this file is a pulled, read-only copy of a snapshot."""

# Sorting and indexing stay in memory, so no temporary file holds texts that forgetting could not erase.
_TEMPORARIES_IN_MEMORY = "PRAGMA temp_store = MEMORY"

SqlParameters = Sequence[Any] | Mapping[str, Any]


@functools.cache
def check_sqlite() -> None:
    """Raises BadInput when this Python's SQLite is too old or has no full-text search."""
    if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
        needed = ".".join(map(str, MIN_SQLITE_VERSION))
        raise BadInput(
            f"This Python has SQLite {sqlite3.sqlite_version}; the store needs {needed}.", hint="use a newer Python"
        )
    with contextlib.closing(sqlite3.connect(":memory:")) as conn:
        try:
            conn.execute("CREATE VIRTUAL TABLE probe USING fts5(word)")
        except sqlite3.OperationalError as error:
            raise BadInput(
                "This Python's SQLite has no FTS5 full-text search.", hint="use another build of Python"
            ) from error


class Connection:
    """An open database in autocommit mode. Reads see committed data; writes go through `transaction`.

    Belongs to the thread that opened it.
    """

    def __init__(self, root: Path, conn: sqlite3.Connection, *, timeout: float, writable: bool) -> None:
        self.root, self.timeout, self.writable = root, timeout, writable
        self._conn = conn
        self._identity = _file_identity(root)
        self._after_commit: list[Callable[[], None]] = []

    @classmethod
    def open(cls, root: Path, *, create: bool, timeout: float) -> Connection:
        """Open the database in `root`, brought to the newest schema. Raises as `Registry.open`."""
        check_sqlite()
        path = root / "registry.db"
        _ensure_database_file(root, path, create=create)
        writable = os.access(root, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
        is_copy = is_pulled_copy(root)
        with translate_sqlite_errors(root, timeout):
            try:
                conn = _open_current(root, timeout, writable, create=create)
            except sqlite3.OperationalError as error:
                if writable or not _log_path(path).exists():
                    raise
                raise _unreadable_log_error(root) from error
            if conn is None:
                if is_copy:
                    raise BadInput(
                        f"The store at {root} is a copy of a snapshot of an older mta.",
                        hint=("pull it again with ", Command("pull"), ", from a snapshot made by this version of mta"),
                    )
                if not writable:
                    raise _unwritable_error(root)
                with process_lock(root, "schema", timeout, "bringing the store to the newest schema"):
                    conn = _open_current(root, timeout, writable, create=create)
                    if conn is None:
                        _migrate_schema(root, timeout)
                        conn = _open_current(root, timeout, writable, create=create)
                        assert conn is not None
        if is_copy:
            conn.execute("PRAGMA query_only = ON")
        return cls(root, conn, timeout=timeout, writable=writable and not is_copy)

    def close(self) -> None:
        """Close it. Closing twice is harmless."""
        self._conn.close()

    def require_in_place(self) -> None:
        """Raises IntegrityFault if the path no longer leads to the database that was opened."""
        if _file_identity(self.root) != self._identity:
            raise IntegrityFault(
                f"The store at {self.root} was moved or replaced while it was open; nothing more was written.",
                hint=("run it again and say where the store is now: ", Flag("store", "DIR")),
            )

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._conn.in_transaction)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are committed together or not at all; an inner transaction joins the outer one.

        Raises StoreBusy when another writer holds the store longer than the timeout, and IntegrityFault when the store
        was moved, because its files would be written elsewhere. An error after the commit says that the data are
        stored.
        """
        if self.in_transaction:
            with self._savepoint():
                yield
            return
        self._require_writable()
        self.require_in_place()
        with self._translate_errors():
            self._conn.execute("BEGIN IMMEDIATE")
        try:
            if (found := schema_version(self._conn)) > SCHEMA_VERSION:
                raise IntegrityFault(
                    f"A newer mta has brought the store at {self.root} to schema {found}; nothing was written.",
                    hint="start again with the newer mta",
                )
            yield
            self.require_in_place()
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
        """Call `action` after the open transaction commits, or now when none is open; never after a rollback."""
        if self.in_transaction:
            self._after_commit.append(action)
        else:
            action()

    def fetch_dicts(self, sql: str, parameters: SqlParameters = ()) -> list[dict[str, Any]]:
        """All rows of a query, by column name."""
        with self._translate_errors():
            cursor = self._conn.execute(sql, parameters)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def fetch_tuples(self, sql: str, parameters: SqlParameters = ()) -> list[tuple[Any, ...]]:
        """All rows of a query, in column order."""
        with self._translate_errors():
            return self._conn.execute(sql, parameters).fetchall()

    def fetch_dict(self, sql: str, parameters: SqlParameters = ()) -> dict[str, Any] | None:
        """The first row of a query."""
        found = self.fetch_dicts(sql, parameters)
        return found[0] if found else None

    def fetch_value(self, sql: str, parameters: SqlParameters = ()) -> Any:
        """The first column of the first row of a query; None when there is no row."""
        found = self.fetch_tuples(sql, parameters)
        return found[0][0] if found else None

    def execute_write(self, sql: str, parameters: SqlParameters = ()) -> sqlite3.Cursor:
        """One writing statement, in a transaction of its own if none is open."""
        with self.transaction(), self._translate_errors():
            return self._conn.execute(sql, parameters)

    def insert_row(self, table: str, values: Mapping[str, Any]) -> int:
        """Insert one row, its values by column name; returns its number."""
        places = ", ".join(f":{name}" for name in values)
        row = self.execute_write(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", values).lastrowid
        assert row is not None
        return row

    def execute_write_many(self, sql: str, parameters: Iterable[SqlParameters]) -> int:
        """One writing statement for every tuple; returns how many rows it changed."""
        with self.transaction(), self._translate_errors():
            return max(0, self._conn.executemany(sql, parameters).rowcount)

    @contextlib.contextmanager
    def without_busy_timeout(self) -> Iterator[None]:
        """Inside, operations that would wait for another process raise StoreBusy at once."""
        self._conn.execute("PRAGMA busy_timeout = 0")
        try:
            yield
        finally:
            self._conn.execute(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")

    def vacuum(self) -> None:
        """Overwrite deleted rows: rewrite the database and empty the log. Raises StoreBusy while others read.

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
                "Another process is reading the store and keeps its log.", hint="end it, then run any mta command"
            )

    def copy_to(self, path: Path) -> None:
        """Copy a consistent state of the database to a new file while writers go on. Raises OSError for that file."""
        with self._translate_errors():
            self._conn.execute("PRAGMA query_only = OFF")  # SQLite takes VACUUM INTO for a write to this database
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
    """Whether the store in `root` is a copy of a snapshot. Only `mta pull` changes such a store."""
    return (root / COPY_MARKER).exists()


def _file_identity(root: Path) -> tuple[int, int] | None:
    """Device and inode of the database in `root`; None when there is none."""
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
            f"A store cannot be used at {root}: {error.strerror}.", hint=("choose another ", Flag("store", "DIR"))
        ) from error


def _log_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def sqlite_uri(path: Path, writable: bool) -> str:
    """The database's path as an SQLite URI, read-only if the file may not be written."""
    if writable:
        return path.absolute().as_uri()
    log = _log_path(path)
    # Without write access SQLite cannot make the log's index. If there is no log, the database file has all committed
    # data.
    still = not log.exists() or log.stat().st_size == 0
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if still else ''}"


def _set_pragmas(conn: sqlite3.Connection, timeout: float, writable: bool) -> None:
    for pragma in (
        f"busy_timeout = {int(timeout * 1000)}",
        "foreign_keys = ON",
        "recursive_triggers = ON",
        "secure_delete = ON",
        "synchronous = FULL",
    ):
        conn.execute(f"PRAGMA {pragma}")
    conn.execute(_TEMPORARIES_IN_MEMORY)
    conn.execute("PRAGMA trusted_schema = OFF")
    if not writable:
        conn.execute("PRAGMA query_only = ON")


def _open_current(root: Path, timeout: float, writable: bool, *, create: bool) -> sqlite3.Connection | None:
    """The open database. For a new one or one of an older schema, it is closed again and None is returned."""
    conn = _connect(root, timeout, writable)
    try:
        found = known_schema_version(root, conn)
        if found == 0 and not create:
            raise IntegrityFault(
                f"The store at {root} is empty.",
                hint=(Command("restore", "FILE"), " brings back a backup; ", Command("init"), " begins anew"),
            )
        if writable and found == SCHEMA_VERSION:
            with contextlib.suppress(sqlite3.OperationalError):  # in use: a later opening does it
                # a database that was copied from a backup is not in WAL mode
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
        conn.create_function("unicode_lower", 1, str.lower, deterministic=True)  # SQLite's lowers only a-z
        _set_pragmas(conn, timeout, writable)
    except BaseException:
        conn.close()
        raise
    return conn


def _migrate_schema(root: Path, timeout: float) -> None:
    """Migrate the store to the current schema while no other process has it open, because an older program would keep
    writing.

    Raises StoreBusy when another process has it open for longer than the timeout.
    """
    from store.migrations.steps import migrate

    with contextlib.closing(_connect(root, timeout, writable=True)) as conn:
        conn.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()  # before the first read, to keep out all others
        try:
            conn.execute("BEGIN EXCLUSIVE")
            conn.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if (getattr(error, "sqlite_errorname", "") or "").startswith("SQLITE_BUSY"):
                raise StoreBusy(
                    f"The store at {root} must be brought to schema {SCHEMA_VERSION}, and another process has it open.",
                    hint="end it (an older mta's window or chat, perhaps), then run this again",
                ) from error
            raise
        mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise BadInput(
                f"The file system of {root} cannot hold a store (SQLite's log mode is {mode}).", hint="use a local disk"
            )
        if (found := schema_version(conn)) > 0:
            save_before_migration(root, conn, found)
        conn.execute("PRAGMA foreign_keys = OFF")  # some migrations rebuild tables
        migrate(conn)


def _run_after_commit(action: Callable[[], None]) -> MtaError | None:
    """Run an action after a commit. If it fails, returns an error that says what is done and what remains to be
    done.
    """
    try:
        action()
    except MtaError as error:
        before = "end it or let it end" if isinstance(error, StoreBusy) else "mend that"
        owed = type(error)(
            ("The change is done, but removed bytes stay on the disk for now. ", error.message),
            hint=f"{before}, then run any mta command: it removes them",
        )
        owed.__cause__ = error
        return owed
    return None


def _unwritable_error(root: Path) -> BadInput:
    if is_pulled_copy(root):
        return BadInput(
            f"The store at {root} is a copy of a snapshot and is only read.",
            hint=(
                "change the store that the snapshot is made from, then ",
                Command("snapshot"),
                " and ",
                Command("pull"),
            ),
        )
    if _is_read_only(root):
        return BadInput(
            f"The store at {root} cannot be written: its file system is read-only.",
            hint="make it writable, or choose another directory",
        )
    return BadInput(f"The store at {root} cannot be written.", hint="check the permissions of its directory")


def _is_read_only(root: Path) -> bool:
    """Whether the file system is mounted read-only; False if the system does not say."""
    try:
        return bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    except (AttributeError, OSError):
        return False


def _unreadable_log_error(root: Path) -> BadInput:
    return BadInput(
        f"The store at {root} is not damaged, but its last changes are in registry.db-wal, which SQLite reads only "
        "where it may write.",
        hint="make the directory writable, or copy it to a disk that is",
    )


@contextlib.contextmanager
def translate_sqlite_errors(root: Path, timeout: float) -> Iterator[None]:
    """Turns SQLite's errors into ours."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        raise _to_mta_error(root, timeout, error) from error
    except UnicodeDecodeError as error:  # SQLite's message about a name in the database
        raise IntegrityFault(
            f"The store at {root} is damaged: its tables have names that are not valid text.",
            hint=(Command("restore", "FILE"), " brings back a backup"),
        ) from error
    except MemoryError as error:
        raise BadInput(
            "There is too little memory for the store.", hint="close other programs and run it again"
        ) from error
    except OverflowError as error:
        raise BadInput(
            "A number is too large for the store.", hint=f"whole numbers go from {-(2**63)} to {2**63 - 1}"
        ) from error
    except UnicodeEncodeError as error:
        raise BadInput(
            "A text holds half of a surrogate pair and cannot be stored.", hint="repair the text's encoding"
        ) from error


def _to_mta_error(root: Path, timeout: float, error: sqlite3.Error) -> MtaError:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StoreBusy(
            f"Another process has been writing to the store for more than {timeout:g} s.", hint="wait, then try again"
        )
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_CANTOPEN")):
        return _unwritable_error(root)
    if name.startswith("SQLITE_FULL"):
        return BadInput(
            "The disk is full: the last write to the store was undone.", hint="free some space and run it again"
        )
    if name.startswith("SQLITE_IOERR"):
        return IntegrityFault(
            f"The disk failed under the store at {root}: {error}.", hint=("check the disk, then ", Command("doctor"))
        )
    if name.startswith("SQLITE_CONSTRAINT"):
        return IntegrityFault(
            f"The data to be stored contradict the data in the store at {root}: {error}.", hint=Command("doctor")
        )
    if name.startswith("SQLITE_TOOBIG"):
        return BadInput("A text is too long to be stored.")
    said = str(error).partition(" with text ")[0]  # keep the message, drop the damaged text
    return IntegrityFault(
        f"The store at {root} cannot be used: {said}.",
        hint=(Command("doctor"), " says what is damaged; ", Command("restore", "FILE"), " brings back a backup"),
    )
