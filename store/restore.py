"""Replaces a store by a verified backup, in one transaction and without users who were removed since the backup.

Users removed and consents withdrawn since the backup are read from the store that is replaced. `Users.forget` and
`Users.set_can_anchor` repeat both in the restored store before it replaces the old one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, MtaError, StoreBusy
from store.backup import Manifest, unpack_backup
from store.connection import is_pulled_copy, translate_sqlite_errors
from store.files import AdapterFiles, disk_fault, hold_temporary, move_file, sync_file, sync_folder
from store.held_files import remove_abandoned
from store.integrity.check import find_schema_differences
from store.registry import Registry
from store.schema import APPLICATION_ID, known_schema_version, schema_version
from store.tables.users import Tombstone

_TOMBSTONES = """SELECT forgotten_at, items, had_anchor, user_uuid FROM tombstones
WHERE user_uuid IS NOT NULL ORDER BY id"""
_WITHDRAWN = "SELECT uuid FROM users WHERE uuid IS NOT NULL AND NOT can_anchor ORDER BY id"
_UNREADABLE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


@dataclass(frozen=True)
class ReplacedStore:
    """What is known about the store that a restore replaces. `users` is None for a missing or unreadable store.

    `problem` says why the users removed since the backup are unknown; empty if they are known. `withdrawn` are the
    uuids of users without consent, `people` the uuids and names of all its users.
    """

    users: int | None
    problem: str = ""
    tombstones: tuple[Tombstone, ...] = ()
    withdrawn: tuple[str, ...] = ()
    people: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RestoreResult:
    """The counts of a restored store; `forgotten` users and `withdrawn` consents were removed from it again."""

    users: int
    adapters: int
    forgotten: int
    withdrawn: int
    replaced: ReplacedStore


class StagedRestore:
    """An unpacked and verified backup in the folder `staged`, ready to replace the store `root`."""

    def __init__(self, root: Path, staged: Path, timeout: float) -> None:
        self._root, self._staged, self._timeout = root, staged, timeout

    def unpack(self, archive: Path) -> Generator[str, None, Manifest]:
        """Unpack, migrate and verify an archive; yields the name of each file in it.

        Raises the errors of `unpack_backup`, and IntegrityFault if the unpacked store is damaged.
        """
        manifest = yield from unpack_backup(archive, self._staged, has_old=(self._root / "registry.db").exists())
        try:
            require_schema(self._staged / "registry.db", manifest.schema)
            with Registry.open(self._staged, timeout=self._timeout) as reg:
                faults = [*find_schema_differences(self._staged), *reg.check_integrity()]
        except (IntegrityFault, sqlite3.DatabaseError) as error:
            faults = [str(error)]
        if faults:
            hint = "use another backup; the store was not changed"
            raise IntegrityFault(f"The store in the backup {archive} is damaged: {faults[0]}", hint=hint)
        return manifest

    def install(
        self, before_install: Callable[[Sequence[str]], Callable[[], None]] = lambda names: lambda: None
    ) -> RestoreResult:
        """Replace the store by the unpacked backup, as a whole or not at all.

        `before_install` is called with the names of users who will be missing after the restore. It returns an undo
        function, which is called if the store then cannot be replaced. Raises StoreBusy while another process has the
        store open, and the errors of `before_install` and `read_replaced_store`.
        """
        database = self._staged / "registry.db"  # no longer exists once it has replaced the old database
        files = AdapterFiles(self._root)
        with _open_exclusively(self._root) as live:
            replaced = _unreadable_store(self._root) if live is None else _read_replaced(self._root, live)
            with Registry.open(self._staged, timeout=self._timeout) as reg:
                forgotten, withdrawn = _repeat_removals(reg, replaced)
                users = reg.count_rows()["users"]
                digests = [adapter.digest for adapter in reg.adapters.all()]
                reg.adapters.schedule_file_deletion(files.stored_digests() - set(digests))
                kept = ((name, reg.users.find_by_uuid(uuid)) for uuid, name in replaced.people)
                gone = sorted({name for name, user in kept if user is None or user.name != name})
            take_back = before_install(gone) if gone else None
            try:
                for digest in digests:
                    files.claim_digest(digest)  # reserved until its row is stored
                    move_file(AdapterFiles(self._staged).path(digest), files.path(digest))
                with translate_sqlite_errors(self._root, self._timeout):
                    replace_database(self._root, database, live)
            except MtaError:
                if take_back is not None and database.exists():
                    take_back()
                raise
            files.remove_all_checkpoints()  # they belong to trainings of the replaced store
            for digest in digests:
                files.release_claim(digest)
        Registry.open(self._root, timeout=self._timeout).close()  # removes unused files
        return RestoreResult(users, len(digests), forgotten, withdrawn, replaced)


@contextmanager
def stage_restore(root: Path, timeout: float) -> Iterator[StagedRestore]:
    """Yields a restore that can unpack a backup into a temporary folder of the store `root`, which is removed
    afterwards.

    Raises BadInput if the store is a copy of a snapshot.
    """
    if is_pulled_copy(root):
        raise BadInput(
            f"The store at {root} is a copy of a snapshot, which a backup cannot replace.",
            hint=("choose another directory: ", Flag("store", "DIR")),
        )
    with stage_folder(root) as staged:
        yield StagedRestore(root, staged, timeout)


@contextmanager
def stage_folder(root: Path) -> Iterator[Path]:
    """Yields a temporary folder in the store `root`, which may be missing, for the parts of a new store.

    The folder is removed afterwards, and so is `root` if it still has no database.
    """
    with ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in AdapterFiles(root).find_abandoned_temporaries():
                if left.is_dir():
                    with suppress(OSError):
                        remove_abandoned(left)
            held.callback(_remove_empty_store, root)
            staged = held.enter_context(hold_temporary(root / "partial", is_folder=True))
        except OSError as error:
            raise disk_fault(root, error) from error
        yield staged


def _remove_empty_store(root: Path) -> None:
    if not (root / "registry.db").exists():
        with suppress(OSError):  # folders that are not empty stay
            (root / "partial").rmdir()
            root.rmdir()


def read_replaced_store(root: Path) -> ReplacedStore:
    """What is known about the store that a restore would replace.

    Raises IntegrityFault for another program's or a newer database, BadInput for one that may not be opened.
    """
    path = root / "registry.db"
    if not path.exists():
        return _unreadable_store(root)
    with closing(sqlite3.connect(path)) as conn:
        return _read_replaced(root, conn)


def _unreadable_store(root: Path) -> ReplacedStore:
    there = (root / "registry.db").exists()
    return ReplacedStore(None, f"the store at {root} cannot be read" if there else f"there is no store at {root}")


def _read_replaced(root: Path, conn: sqlite3.Connection) -> ReplacedStore:
    try:
        schema = known_schema_version(root, conn)
        if schema == 0:
            return ReplacedStore(0, f"the store at {root} is empty")
        return ReplacedStore(
            conn.execute("SELECT count(*) FROM users").fetchone()[0],
            tombstones=tuple(conn.execute(_TOMBSTONES)),
            withdrawn=tuple(uuid for (uuid,) in conn.execute(_WITHDRAWN)),
            people=tuple(conn.execute("SELECT uuid, name FROM users")),
        )
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        _raise_unless_damaged(root, error)
        return _unreadable_store(root)


def _raise_unless_damaged(root: Path, error: Exception) -> None:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        raise StoreBusy(
            "Another process has the store open.",
            hint=("close every ", Command("tui"), " and let other commands end, then run the command again"),
        ) from error
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")):
        # Only this store lists its removed users: restoring without the list would bring them back.
        raise BadInput(
            f"The store at {root} cannot be opened: {error}.", hint="check the permissions of its directory"
        ) from error


@contextmanager
def _open_exclusively(root: Path) -> Iterator[sqlite3.Connection | None]:
    """Yields the database, opened so that no other process can use it; None for a missing or unreadable one."""
    path = root / "registry.db"
    if not path.exists():
        yield None
        return
    conn: sqlite3.Connection | None = sqlite3.connect(path, isolation_level=None, timeout=0)
    assert conn is not None
    with closing(conn) as opened:
        try:
            # Before the first read: set later, it would keep out only the readers of that moment.
            opened.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            opened.execute("PRAGMA secure_delete = ON").fetchall()
            opened.execute("BEGIN EXCLUSIVE")
            opened.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            _raise_unless_damaged(root, error)
            opened.close()
            conn = None
        yield conn


def _repeat_removals(reg: Registry, replaced: ReplacedStore) -> tuple[int, int]:
    """Remove the users that the replaced store removed and withdraw its withdrawn consents; returns both counts."""
    forgotten = withdrawn = 0
    with reg.transaction():
        for tombstone in replaced.tombstones:
            user = reg.users.find_by_uuid(tombstone[-1])
            if user is not None:
                reg.users.forget(user.id)
                forgotten += 1
            reg.users.keep_tombstone(tombstone)
        for uuid in replaced.withdrawn:
            user = reg.users.find_by_uuid(uuid)
            if user is not None and user.can_anchor:
                reg.users.set_can_anchor(user.id, False)
                withdrawn += 1
    return forgotten, withdrawn


def require_schema(path: Path, schema: int) -> None:
    """Raises IntegrityFault unless the database is a store's and has this schema."""
    try:
        with closing(sqlite3.connect(path)) as conn:
            found = conn.execute("PRAGMA application_id").fetchone()[0], schema_version(conn)
    except sqlite3.DatabaseError as error:
        raise IntegrityFault(str(error)) from error
    if found != (APPLICATION_ID, schema):
        raise IntegrityFault(f"its database is not a store with schema {schema}")


def replace_database(root: Path, new: Path, live: sqlite3.Connection | None) -> bool:
    """Replace the store's database by the file `new`, which then no longer exists.

    Happens in one transaction, or by a rename if the old database is missing or unreadable. Returns whether all bytes
    of the old one are gone: a reader or a full disk may keep some in the log.
    """
    path = root / "registry.db"
    if live is not None:
        try:
            with closing(sqlite3.connect(new)) as source:
                source.backup(live)
            new.unlink()  # makes room, because emptying the log may make the old file larger
            with suppress(sqlite3.OperationalError):  # a failure is harmless: the log has the whole new database
                busy, _, _ = live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
            return False
        except sqlite3.DatabaseError as error:
            if not error.sqlite_errorname.startswith(_UNREADABLE):
                raise
            live.close()
    try:
        sync_file(new)
        for suffix in ("-wal", "-shm", "-journal"):  # SQLite would apply the old database's log to the new one
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        new.replace(path)
        sync_folder(root)
    except OSError as error:
        raise disk_fault(path, error) from error
    return True
