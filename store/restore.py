"""Replaces a store by an unpacked backup: verified first, in one transaction, without forgotten users.

Users forgotten and consents withdrawn since the backup are read from the replaced store. The same code as for `forget`
applies both to the restored store before it replaces the old one.
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
from store.files import AdapterFiles, disk_fault, hold_temporary, sync_file, sync_folder
from store.held_files import remove_abandoned
from store.integrity.check import find_foreign_parts
from store.registry import Registry
from store.schema import APPLICATION_ID, known_schema_version, schema_version
from store.tables.users import Tombstone

_TOMBSTONES = """SELECT forgotten_at, items, had_anchor, user_uuid FROM tombstones
WHERE user_uuid IS NOT NULL ORDER BY id"""
_WITHDRAWN = "SELECT uuid FROM users WHERE uuid IS NOT NULL AND NOT can_anchor ORDER BY id"
_UNREADABLE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


@dataclass(frozen=True)
class ReplacedStore:
    """The store that a restore replaces. `users` is None for a missing or unreadable store.

    `problem` says why the users forgotten since the backup are unknown; empty if they are known. `withdrawn` are the
    uuids of users without consent, `people` the uuids and names of all its users.
    """

    users: int | None
    problem: str = ""
    tombstones: tuple[Tombstone, ...] = ()
    withdrawn: tuple[str, ...] = ()
    people: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RestoreResult:
    """The contents of a restored store. `forgotten`: users who were forgotten again; `withdrawn`: consents."""

    users: int
    adapters: int
    forgotten: int
    withdrawn: int
    replaced: ReplacedStore


class StagedRestore:
    """An unpacked and verified backup beside the store `root`, ready to replace it."""

    def __init__(self, root: Path, staged: Path, timeout: float) -> None:
        self._root, self._staged, self._timeout = root, staged, timeout

    def unpack(self, archive: Path) -> Generator[str, None, Manifest]:
        """Unpack, migrate and verify an archive; yields each member's name. Raises as `unpack_backup`."""
        manifest = yield from unpack_backup(archive, self._staged, has_old=(self._root / "registry.db").exists())
        try:
            require_schema(self._staged / "registry.db", manifest.schema)
            with Registry.open(self._staged, timeout=self._timeout) as reg:
                faults = [*find_foreign_parts(self._staged), *reg.check_integrity()]
        except (IntegrityFault, sqlite3.DatabaseError) as error:
            faults = [str(error)]
        if faults:
            hint = "use another backup; nothing was changed"
            raise IntegrityFault(f"{archive} holds a damaged store: {faults[0]}", hint=hint)
        return manifest

    def install(
        self, before_install: Callable[[Sequence[str]], Callable[[], None]] = lambda names: lambda: None
    ) -> RestoreResult:
        """Replace the store, whole or not at all.

        `before_install` is called with the names of users who will be missing after the restore. It returns an undo
        function, which is called if the store then cannot be replaced. Raises StoreBusy while another process has the
        store open, the errors of `before_install`, and as `read_replaced_store`.
        """
        database = self._staged / "registry.db"  # it no longer exists once it has replaced the old one
        files = AdapterFiles(self._root)
        with _open_alone(self._root) as live:
            replaced = _describe_missing(self._root) if live is None else _read_replaced(self._root, live)
            with Registry.open(self._staged, timeout=self._timeout) as reg:
                forgotten, withdrawn = _replay(reg, replaced)
                users = reg.count_rows()["users"]
                digests = [adapter.digest for adapter in reg.adapters.all()]
                reg.adapters.doom_files(files.stored_digests() - set(digests))
                kept = ((name, reg.users.find_by_uuid(uuid)) for uuid, name in replaced.people)
                gone = sorted({name for name, user in kept if user is None or user.name != name})
            take_back = before_install(gone) if gone else None
            try:
                for digest in digests:
                    self._move_file(files, digest)
                with translate_sqlite_errors(self._root, self._timeout):
                    replace_database(self._root, database, live)
            except MtaError:
                if take_back is not None and database.exists():
                    take_back()
                raise
            files.drop_all_checkpoints()  # trainings of the store that was replaced
            for digest in digests:
                files.release_claim(digest)
        Registry.open(self._root, timeout=self._timeout).close()  # removes unused files
        return RestoreResult(users, len(digests), forgotten, withdrawn, replaced)

    def _move_file(self, files: AdapterFiles, digest: str) -> None:
        """Move an adapter file to the store; this process claims it until its row is written."""
        target = files.path(digest)
        files.claim_digest(digest)
        try:
            AdapterFiles(self._staged).path(digest).replace(target)
            sync_folder(target.parent)
        except OSError as error:
            raise disk_fault(target, error) from error


@contextmanager
def stage_restore(root: Path, timeout: float) -> Iterator[StagedRestore]:
    """Yields a folder beside the store `root` to unpack a backup in; it is removed afterwards.

    Raises BadInput where the store is a pulled copy of a snapshot.
    """
    if is_pulled_copy(root):
        raise BadInput(f"The store at {root} is a copy of a snapshot.", hint=("choose another ", Flag("store", "DIR")))
    with stage_folder(root) as staged:
        yield StagedRestore(root, staged, timeout)


@contextmanager
def stage_folder(root: Path) -> Iterator[Path]:
    """Yields a folder in the store `root`, which may be missing, for the parts of a new store; it is removed
    afterwards.
    """
    with ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in AdapterFiles(root).abandoned_temporaries():
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
    """The store that a restore would replace.

    Raises IntegrityFault for another program's or a newer database, BadInput for one that may not be opened.
    """
    path = root / "registry.db"
    if not path.exists():
        return _describe_missing(root)
    with closing(sqlite3.connect(path)) as conn:
        return _read_replaced(root, conn)


def _describe_missing(root: Path) -> ReplacedStore:
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
        return _describe_missing(root)


def _raise_unless_damaged(root: Path, error: Exception) -> None:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        raise StoreBusy(
            "Another process has the store open.",
            hint=("close every ", Command("tui"), " and wait for other commands to end, then run this again"),
        ) from error
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY")):
        # The store has a list of forgotten users. Continuing without it would restore those users.
        raise BadInput(
            f"The store at {root} cannot be opened: {error}.", hint="check the permissions of its directory"
        ) from error


@contextmanager
def _open_alone(root: Path) -> Iterator[sqlite3.Connection | None]:
    """The database, opened exclusively; None for a missing or unreadable one."""
    path = root / "registry.db"
    if not path.exists():
        yield None
        return
    conn: sqlite3.Connection | None = sqlite3.connect(path, isolation_level=None, timeout=0)
    assert conn is not None
    with closing(conn) as opened:
        try:
            # Set before the first read; set later, it would keep out only the current readers.
            opened.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            opened.execute("PRAGMA secure_delete = ON").fetchall()
            opened.execute("BEGIN EXCLUSIVE")
            opened.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            _raise_unless_damaged(root, error)
            opened.close()
            conn = None
        yield conn


def _replay(reg: Registry, replaced: ReplacedStore) -> tuple[int, int]:
    """Forget the users that the replaced store forgot and withdraw consents; returns how many of each."""
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
    """Raises IntegrityFault unless the database is a store of this schema."""
    try:
        with closing(sqlite3.connect(path)) as conn:
            found = conn.execute("PRAGMA application_id").fetchone()[0], schema_version(conn)
    except sqlite3.DatabaseError as error:
        raise IntegrityFault(str(error)) from error
    if found != (APPLICATION_ID, schema):
        raise IntegrityFault(f"its database does not say that it is a store of schema {schema}")


def replace_database(root: Path, new: Path, live: sqlite3.Connection | None) -> bool:
    """Replace the store's database: in one transaction, or by one rename where the old one is missing or unreadable.

    `new` no longer exists afterwards. Returns whether all bytes of the old database are gone: a reader or a full disk
    may keep some in the log.
    """
    path = root / "registry.db"
    if live is not None:
        try:
            with closing(sqlite3.connect(new)) as source:
                source.backup(live)
            new.unlink()  # the old file may have to grow
            with suppress(sqlite3.OperationalError):  # the log already has the whole new database
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
