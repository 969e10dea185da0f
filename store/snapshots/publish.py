"""Publishes the part of a store that answering needs: writes new files, then the manifest, then removes old files.

A reader sees either the old or the new snapshot, never a mix.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput, IntegrityFault, StoreBusy
from store.columns import utc_now
from store.files import disk_fault, hold_temporary
from store.schema import SCHEMA_VERSION
from store.snapshots.manifest import (
    MAX_MANIFEST_BYTES,
    SnapshotManifest,
    encode_manifest,
    encode_unfinished_list,
    listed_digests,
)
from store.snapshots.place import MANIFEST_NAME, UNFINISHED_NAME, SnapshotPlace
from store.snapshots.serving_copy import ServingChoice

if TYPE_CHECKING:
    from store.registry import Registry

COUNTED_TABLES = ("users", "banks", "recipes", "stacks", "adapters")


@dataclass(frozen=True)
class StagedSnapshot:
    """A snapshot that is ready to be published.

    `new` are the digests of the files that it will write, `old` the digests of the files that it will then remove.
    """

    manifest: SnapshotManifest
    new: list[str]
    old: list[str]
    _own: set[str]
    _reg: Registry
    _place: SnapshotPlace
    _registry_file: Path

    @property
    def new_bytes(self) -> int:
        """The size of the files to be written."""
        return sum(self.manifest.sizes[digest] for digest in self.new)

    def publish(self, key: bytes | None) -> Generator[str, None, None]:
        """Write the snapshot, signed if there is a key; yields the digest of each file once it is written.

        Raises BadInput if the place cannot be written, IntegrityFault for a damaged adapter file, StoreBusy if another
        process removed an adapter meanwhile.
        """
        self._place.remove_leftovers()
        self._write(encode_unfinished_list(self._own.union(self.new)), UNFINISHED_NAME)
        for digest in self.new:
            self._place.write_object(digest, self._verified_file(digest))
            yield digest
        self._write(encode_manifest(self.manifest, key), MANIFEST_NAME)
        for digest in self.old:
            self._place.remove_object(digest)
        self._place.remove_unfinished()

    def _write(self, content: bytes, name: str) -> None:
        with hold_temporary(self._registry_file.parent) as file:
            file.write_bytes(content)
            self._place.write_manifest(file, name)

    def _verified_file(self, digest: str) -> Path:
        if digest == self.manifest.registry:
            return self._registry_file
        try:
            self._reg.files.verify(digest)
        except IntegrityFault:
            if self._reg.adapters.is_recorded(digest):
                raise
            raise StoreBusy(
                "Another process removed an adapter while the snapshot was written.",
                hint="run the command again; files that were written are kept",
            ) from None
        return self._reg.files.path(digest)


@contextmanager
def stage_snapshot(
    reg: Registry, place: SnapshotPlace, choice: ServingChoice, program: str, *, hashed_names: bool
) -> Iterator[StagedSnapshot]:
    """Prepare a snapshot of the store and compare it with the one at `place`, to which nothing is written yet.

    Raises BadInput if the place cannot be read or contains another program's manifest, or if the store's disk is full.
    """
    own = _digests_of_earlier_snapshots(place)
    try:
        with hold_temporary(reg.files.checkpoint_folder) as path:
            reg.write_serving_copy(path, choice)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with closing(sqlite3.connect(path)) as conn:
                counts = {name: conn.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in COUNTED_TABLES}
                sizes = dict(conn.execute("SELECT digest, bytes FROM adapters ORDER BY digest"))
            sizes[digest] = path.stat().st_size
            tasks = None if choice.tasks is None else list(choice.tasks)
            manifest = SnapshotManifest(utc_now(), program, SCHEMA_VERSION, tasks, hashed_names, counts, digest, sizes)
            there = place.object_sizes()
            new = [digest for digest, size in sizes.items() if there.get(digest) != size]
            old = sorted(own & there.keys() - sizes.keys())
            yield StagedSnapshot(manifest, new, old, own, reg, place, path)
    except OSError as error:
        raise disk_fault(reg.root, error) from error


def _digests_of_earlier_snapshots(place: SnapshotPlace) -> set[str]:
    """The digests of files that snapshots wrote here, also unfinished ones; other files belong to other programs."""
    found = place.read_manifest(MAX_MANIFEST_BYTES)
    own = set[str]() if found is None else listed_digests(found)
    if own is None:
        raise BadInput(
            f"{place.address}/{MANIFEST_NAME} is a file of another program.", hint="write the snapshot to another place"
        )
    unfinished = place.read_manifest(MAX_MANIFEST_BYTES, UNFINISHED_NAME)
    return own | (listed_digests(unfinished or b"") or set())
