"""Pulls a snapshot: makes a read-only store from it, or updates an earlier copy.

Missing files are fetched into a temporary folder in the store, verified there, and then moved into place. The database
is replaced in one transaction, so readers can go on.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, MtaError, NotFound, StoreBusy
from store.connection import COPY_MARKER, is_pulled_copy, translate_sqlite_errors
from store.files import AdapterFiles, disk_fault, make_private_folder, move_file, remove_file, replace_file, sync_file
from store.integrity.check import find_schema_differences
from store.process_lock import process_lock
from store.registry import Registry
from store.restore import replace_database, require_schema, stage_folder
from store.schema import SCHEMA_VERSION, schema_version
from store.snapshots.manifest import (
    MAX_MANIFEST_BYTES,
    ReadManifest,
    SnapshotManifest,
    decode_manifest,
    encode_copy_manifest,
    is_signed_with,
    was_verified,
)
from store.snapshots.place import SnapshotPlace

MAX_CLOCK_DIFFERENCE = timedelta(hours=1)  # a snapshot may be dated this much later than this machine's clock


@dataclass(frozen=True)
class PullResult:
    """The result of a pull. `removed` counts adapters that the snapshot no longer has.

    `is_purged` is False if a reader kept bytes of the earlier database in the log.
    """

    removed: int
    is_purged: bool


@dataclass(frozen=True)
class Pull:
    """A snapshot with a read and verified manifest, and the store `root` that it is pulled into."""

    root: Path
    timeout: float
    found: ReadManifest
    _place: SnapshotPlace
    _content: bytes = field(repr=False)
    _marker: bytes | None = field(repr=False)

    @classmethod
    def begin(
        cls, root: Path, place: SnapshotPlace, key: bytes | None, timeout: float, *, trust_unsigned: bool = False
    ) -> Pull:
        """Read and verify the manifest of the snapshot at `place`. Changes nothing.

        Raises NotFound if there is no snapshot, BadInput if the store is not a copy of a snapshot or its disk has no
        room, IntegrityFault for a manifest that is malformed, dated in the future, not signed with `key`, or older than
        the copy. If a key verified the copy, `key` must be the same one, unless `trust_unsigned`.
        """
        content = place.read_manifest(MAX_MANIFEST_BYTES)
        if content is None:
            raise NotFound(
                f"There is no snapshot at {place.address}.",
                hint=(
                    Command("snapshot", "TO"),
                    " makes a snapshot. To fetch a model, use ",
                    Command("model pull", "NAME"),
                ),
            )
        found = decode_manifest(content, key, place.address)
        pull = cls(root, timeout, found, place, content, _read_marker(root))
        pull._require_replaceable_store()
        pull._require_not_in_future()
        if not trust_unsigned:
            pull._require_same_key(key)
        pull._require_room()
        return pull

    @property
    def manifest(self) -> SnapshotManifest:
        """The snapshot's content."""
        return self.found.content

    @cached_property
    def missing(self) -> list[str]:
        """The digests of files that are missing or damaged in the store. Reads every file of the store."""
        files = AdapterFiles(self.root)
        missing = [digest for digest in sorted(self.manifest.adapters) if not files.has_intact_file(digest)]
        return missing if self._has_registry() else [*missing, self.manifest.registry]

    @property
    def missing_bytes(self) -> int:
        """The size of the missing files."""
        return sum(self.manifest.sizes[digest] for digest in self.missing)

    def run(
        self, before_install: Callable[[Sequence[str]], Callable[[], None]] = lambda names: lambda: None
    ) -> Generator[str, None, PullResult]:
        """Fetch and verify the missing files and install them; yields each digest once it is fetched.

        `before_install` is called with the names of the copy's users whom the snapshot no longer has. It returns an
        undo function, which is called if the copy then cannot be replaced. Raises NotFound for missing files,
        IntegrityFault for files that differ from the manifest, and the errors of `before_install`; the store is then
        unchanged. Raises StoreBusy while another pull writes.
        """
        with stage_folder(self.root) as staged:
            for digest in self.missing:
                self._fetch(digest, self._target(staged, digest))
                yield digest
            database = staged / "registry.db"
            if database.exists():
                self._verify_database(staged)
            with process_lock(self.root, "pull", self.timeout, "pulling a snapshot into this store"):
                self._require_replaceable_store()
                if _read_marker(self.root) != self._marker:
                    raise StoreBusy("Another pull changed this store meanwhile.", hint="run the command again")
                if not database.exists():
                    return self._install(staged, None)
                gone = self._users_missing_in(database)
                take_back = before_install(gone) if gone else None
                try:
                    return self._install(staged, database)
                except MtaError:
                    # once it has replaced the old database, the new file no longer exists and undoing would be wrong
                    if take_back is not None and database.exists():
                        take_back()
                    raise

    def _require_replaceable_store(self) -> None:
        if not is_pulled_copy(self.root):
            if any((self.root / name).exists() for name in ("registry.db", "adapters")):
                raise BadInput(
                    f"The store at {self.root} is not a copy of a snapshot, so a snapshot cannot replace it.",
                    hint=("choose another directory for the copy: ", Flag("store", "DIR")),
                )
            return
        if (installed := self._installed()) is not None and installed.time > self.manifest.time:
            raise IntegrityFault(
                f"The snapshot at {self._place.address} is of {self.manifest.created}, and the copy at {self.root} is "
                f"newer ({installed.created}): users who were removed since may be in the snapshot.",
                hint="to pull the older snapshot nevertheless, remove the copy first",
            )

    def _require_not_in_future(self) -> None:
        if self.manifest.time > datetime.now(UTC) + MAX_CLOCK_DIFFERENCE:
            raise IntegrityFault(
                f"The snapshot at {self._place.address} is dated in the future: {self.manifest.created}.",
                hint="check the clocks of this machine and of the one that makes the snapshot",
            )

    def _require_same_key(self, key: bytes | None) -> None:
        if was_verified(self._marker or b"") and (key is None or not is_signed_with(self._marker or b"", key)):
            raise IntegrityFault(
                f"The copy at {self.root} was verified with a key, and the snapshot at {self._place.address} is not "
                "verified with the same key.",
                hint=(Flag("key", "FILE"), " verifies it; ", Flag("trust_unsigned"), " pulls it unverified"),
            )

    def _require_room(self) -> None:
        place = next(path for path in (self.root, *self.root.parents) if path.exists())
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            raise disk_fault(self.root, error, "read") from error
        sizes, registry = self.manifest.sizes, self.manifest.registry
        replaces = registry in self.missing and (self.root / "registry.db").exists()
        # the new database is fetched, then copied into the old one
        needed = self.missing_bytes + (sizes[registry] if replaces else 0)
        if needed > free:
            raise BadInput(
                f"The snapshot at {self._place.address} needs {needed:,} bytes; {self.root} has room for {free:,}.",
                hint="free some space on this disk, then run the command again",
            )

    def _installed(self) -> SnapshotManifest | None:
        """The manifest of the copy; None if the first pull was stopped or the manifest has another version."""
        try:
            return decode_manifest(self._marker or b"", None, str(self.root)).content
        except MtaError:
            return None

    def _has_registry(self) -> bool:
        """Whether the store already has the snapshot's database, undamaged."""
        installed = self._installed()
        if installed is None or installed.registry != self.manifest.registry:
            return False
        try:
            with closing(
                sqlite3.connect(f"{(self.root / 'registry.db').absolute().as_uri()}?mode=rw", uri=True)
            ) as conn:
                sound = conn.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
                return sound and schema_version(conn) == SCHEMA_VERSION
        except sqlite3.DatabaseError:
            return False

    def _target(self, staged: Path, digest: str) -> Path:
        if digest == self.manifest.registry:
            return staged / "registry.db"
        return AdapterFiles(staged).path(digest)

    def _fetch(self, digest: str, target: Path) -> None:
        found, left = hashlib.sha256(), self.manifest.sizes[digest]
        try:
            make_private_folder(target.parent)
            with target.open("xb") as file:
                target.chmod(0o600)
                for chunk in self._place.read_object(digest):
                    left -= len(chunk)
                    if left < 0:
                        break
                    found.update(chunk)
                    file.write(chunk)
            sync_file(target)
        except OSError as error:
            raise disk_fault(target, error) from error
        if left or found.hexdigest() != digest:
            raise IntegrityFault(
                f"The file {digest} of the snapshot at {self._place.address} is damaged; nothing was changed here.",
                hint=("delete this file, then write the snapshot again: ", Command("snapshot", "TO")),
            )

    def _verify_database(self, staged: Path) -> None:
        """Raises IntegrityFault unless the fetched database is undamaged and lists exactly the manifest's adapters."""
        try:
            require_schema(staged / "registry.db", SCHEMA_VERSION)
            faults = find_schema_differences(staged)
            if not faults:
                with Registry.open(staged, timeout=self.timeout) as reg:
                    faults = reg.check_database()
                    if {adapter.digest for adapter in reg.adapters.all()} != self.manifest.adapters:
                        faults.append("its adapters differ from those in the manifest")
        except (IntegrityFault, sqlite3.DatabaseError) as error:
            faults = [str(error)]
        if faults:
            raise IntegrityFault(
                f"The database of the snapshot at {self._place.address} is damaged: {faults[0]}",
                hint=("nothing was changed here; write the snapshot again: ", Command("snapshot", "TO")),
            )

    def _users_missing_in(self, new: Path) -> list[str]:
        """The names of the copy's users who are not in the database `new`.

        Users are compared by id and name, because another user there may have the same name.
        """
        with suppress(sqlite3.DatabaseError):  # an unreadable copy has no names to report
            return sorted({name for _, name in self._users(self.root / "registry.db") - self._users(new)})
        return []

    def _users(self, path: Path) -> set[tuple[int, str]]:
        if not path.exists():
            return set()
        with closing(self._connect(path)) as conn:
            return set(conn.execute("SELECT id, name FROM users"))

    def _install(self, staged: Path, database: Path | None) -> PullResult:
        """Install adapters, then the database, then the manifest, so that the next pull can finish a killed one."""
        files = AdapterFiles(self.root)
        if self._marker is None:
            self._write_marker(b"{}")
        for digest in self.manifest.adapters.intersection(self.missing):
            move_file(self._target(staged, digest), files.path(digest))
        with translate_sqlite_errors(self.root, self.timeout):
            is_purged = self._empty_log() if database is None else self._replace_and_purge_database(database)
        self._write_marker(encode_copy_manifest(self.found, self._content))
        old = files.find_orphans(self.manifest.adapters)
        for path in old:
            remove_file(path)
        return PullResult(len(old), is_purged)

    def _write_marker(self, content: bytes) -> None:
        with replace_file(self.root / COPY_MARKER, self.root / "partial") as temporary:
            temporary.write_bytes(content)
            sync_file(temporary)

    def _replace_and_purge_database(self, new: Path) -> bool:
        """Replace the database while others read it; returns whether all bytes of the old one are gone."""
        path = self.root / "registry.db"
        if not path.exists():
            return replace_database(self.root, new, None)
        with closing(self._connect(path)) as live:
            return replace_database(self.root, new, live)

    def _empty_log(self) -> bool:
        """Empty SQLite's log, where a reader may have kept an earlier copy; returns whether all its bytes are gone."""
        with closing(self._connect(self.root / "registry.db")) as live:
            busy, _, _ = live.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def _connect(self, path: Path) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=None, timeout=self.timeout)


def _read_marker(root: Path) -> bytes | None:
    """The content of the manifest's file in the copy in `root`; None if there is no copy."""
    try:
        return (root / COPY_MARKER).read_bytes()
    except OSError:
        return None
