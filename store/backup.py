"""One archive of a whole store: a zip file of the database, the adapter files and a manifest with every digest.

Nothing in an archive is trusted when it is read. Member names must be those that a backup uses; sizes and digests must
match the manifest. `store.restore` replaces a store with the unpacked files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mta_cli.errors import BadInput, IntegrityFault, NotFound, StoreBusy
from store.columns import utc_now
from store.connection import translate_sqlite_errors
from store.database_copy import purge_copy
from store.files import (
    disk_fault,
    hold_temporary,
    missing_file_hint,
    remove_leftover_temporaries,
    sync_file,
    sync_folder,
)
from store.schema import SCHEMA_VERSION, TABLES, schema_version

if TYPE_CHECKING:
    from store.registry import Registry

FORMAT_NAME, FORMAT_VERSION = "mta backup", 1
MANIFEST_NAME, DATABASE_NAME = "manifest.json", "registry.db"
MAX_MANIFEST_BYTES = 64 * 2**20
MAX_EXPANSION = 100  # most unpacked bytes per byte of the archive, beyond MIN_EXPANDED_BYTES
MIN_EXPANDED_BYTES = 256 * 2**20
MAX_ATTEMPTS = 5  # a writer may remove an adapter between the copy of the database and that of its file
_CHUNK_BYTES = 2**20
_ADAPTER_PATTERN = re.compile(r"adapters/([0-9a-f]{2})/(\1[0-9a-f]{62})\.safetensors")
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    KeyError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """An archive's manifest. `schema` is the database's, `created` ISO 8601, `counts` rows by table."""

    created: str
    program: str
    schema: int
    counts: dict[str, int]
    members: dict[str, Member]

    @property
    def total_bytes(self) -> int:
        """Bytes of all members, unpacked."""
        return sum(member.bytes for member in self.members.values())


class _RemovedMeanwhileError(Exception):
    """Another process removed an adapter that the copied database has."""


def create_backup(reg: Registry, path: Path, program: str) -> Generator[str, None, Manifest]:
    """Write the store to an archive, which appears whole or not at all; yields each member's name once it is written.

    Returns the manifest. `program` is the version that writes it. Raises BadInput when the file cannot be written,
    IntegrityFault for a damaged adapter file, StoreBusy when other processes keep removing adapters.
    """
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}.", hint="create it, or choose another file")
    try:
        remove_leftover_temporaries(folder)
        for _ in range(MAX_ATTEMPTS):
            with suppress(_RemovedMeanwhileError), hold_temporary(folder) as copy, hold_temporary(folder) as archive:
                reg.copy_database(copy)
                with translate_sqlite_errors(reg.root, 0):
                    purge_copy(copy)
                manifest = yield from _write_archive(reg, copy, archive, program)
                archive.replace(path)
                sync_folder(folder)
                return manifest
    except OSError as error:
        raise disk_fault(path, error) from error
    raise StoreBusy("Other processes remove adapters all the while.", hint="wait for them to end, then try again")


def _write_archive(reg: Registry, copy: Path, archive: Path, program: str) -> Generator[str, None, Manifest]:
    with closing(sqlite3.connect(copy)) as conn:
        schema = schema_version(conn)
        counts = {table: conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
        digests = [digest for (digest,) in conn.execute("SELECT digest FROM adapters ORDER BY digest")]
    with copy.open("rb") as file:
        members = {DATABASE_NAME: Member(hashlib.file_digest(file, "sha256").hexdigest(), copy.stat().st_size)}
    with archive.open("r+b") as raw:
        with zipfile.ZipFile(raw, "w") as target:
            info = _zip_info(DATABASE_NAME, zipfile.ZIP_DEFLATED)
            info.file_size = members[DATABASE_NAME].bytes  # zipfile chooses its format for large files by this size
            with copy.open("rb") as source, target.open(info, "w") as member:
                shutil.copyfileobj(source, member, _CHUNK_BYTES)
            yield DATABASE_NAME
            for digest in digests:
                name, content = f"adapters/{digest[:2]}/{digest}.safetensors", _read_adapter(reg, digest)
                members[name] = Member(digest, len(content))
                target.writestr(_zip_info(name, zipfile.ZIP_STORED), content)
                yield name
            manifest = Manifest(utc_now(), program, schema, counts, members)
            document = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **asdict(manifest)}
            target.writestr(_zip_info(MANIFEST_NAME, zipfile.ZIP_DEFLATED), json.dumps(document, indent=1))
        raw.flush()
        os.fsync(raw.fileno())
    return manifest


def _read_adapter(reg: Registry, digest: str) -> bytes:
    try:
        return reg.files.read(digest)
    except IntegrityFault:
        if not reg.adapters.is_recorded(digest):
            raise _RemovedMeanwhileError from None
        raise


def _zip_info(name: str, compression: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type, info.external_attr = compression, 0o600 << 16
    return info


def unpack_backup(path: Path, root: Path, *, has_old: bool) -> Generator[str, None, Manifest]:
    """Unpack and verify an archive into `root`, an empty folder; yields each member's name once it is unpacked.

    Returns the manifest. `has_old`: there must be room to write the database once more, over an old one. Raises
    NotFound, BadInput for a file that is not a backup or too large for the disk, IntegrityFault for one that is
    damaged, malformed, or written by a newer program.
    """
    with _open_archive(path) as (archive, size):
        manifest = _read_manifest(path, archive)
        _check_members(path, archive, manifest, size)
        _require_room(path, manifest.total_bytes + has_old * manifest.members[DATABASE_NAME].bytes, root)
        for name, member in manifest.members.items():
            target = root.joinpath(*name.split("/"))  # checked: one of the names that a backup gives
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with archive.open(name) as source:
                _unpack_member(path, name, member, source, target)
            yield name
    return manifest


@contextmanager
def _open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """An open archive and its size in bytes. Errors while it is read become IntegrityFault."""
    try:
        with path.open("rb") as raw:
            if raw.read(2) != b"PK":
                raise BadInput(f"{path} is no backup.", hint="mta backup FILE makes one")
            with zipfile.ZipFile(raw) as archive:
                yield archive, path.stat().st_size
    except FileNotFoundError as error:
        hint = missing_file_hint(path, "mta backup FILE makes one")
        raise NotFound(f"There is no file {path}.", hint=hint) from error
    except _READ_ERRORS as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    except OSError as error:
        raise disk_fault(path, error, "unpacked") from error


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    if MANIFEST_NAME not in archive.namelist():
        raise BadInput(f"{path} is a zip file, and no backup.", hint="mta backup FILE makes one")
    with archive.open(MANIFEST_NAME) as source:
        text = source.read(MAX_MANIFEST_BYTES + 1)
    if len(text) > MAX_MANIFEST_BYTES:
        raise _damaged(path, "its manifest is too large")
    try:
        return _parse_manifest(path, json.loads(text))
    except (TypeError, RecursionError, AttributeError) as error:
        raise _damaged(path, "its manifest is none") from error


def _parse_manifest(path: Path, document: Any) -> Manifest:
    """Raises TypeError, ValueError, KeyError or AttributeError for malformed JSON values."""
    if document["format"] != FORMAT_NAME:
        raise _damaged(path, "its manifest is none")
    version, schema = document["version"], document["schema"]
    if not (type(version) is type(schema) is int and version >= 1 and schema >= 1):
        raise _damaged(path, "its manifest has no version")
    if version > FORMAT_VERSION or schema > SCHEMA_VERSION:
        raise IntegrityFault(
            f"{path} is a backup in format {version} with schema {schema}; this program knows format {FORMAT_VERSION} "
            f"and schemas up to {SCHEMA_VERSION}.",
            hint="use the newer mta that made it",
        )
    members = {name: Member(each["sha256"], each["bytes"]) for name, each in document["members"].items()}
    for name, member in members.items():
        adapter = _ADAPTER_PATTERN.fullmatch(name)
        if not (name == DATABASE_NAME or (adapter is not None and adapter[2] == member.sha256)):
            raise _damaged(path, f"{name[:120]!r} is not the name of a member")
        if type(member.sha256) is not str or type(member.bytes) is not int or member.bytes < 0:
            raise _damaged(path, f"the manifest does not say what {name} is")
    if DATABASE_NAME not in members:
        raise _damaged(path, "it has no database")
    counts = {str(table): int(count) for table, count in document["counts"].items()}
    return Manifest(str(document["created"]), str(document["program"]), schema, counts, members)


def _check_members(path: Path, archive: zipfile.ZipFile, manifest: Manifest, size: int) -> None:
    """Raises IntegrityFault unless the members are those of the manifest."""
    found = [info for info in archive.infolist() if info.filename != MANIFEST_NAME]
    if sorted(info.filename for info in found) != sorted(manifest.members) or len(archive.infolist()) != len(found) + 1:
        raise _damaged(path, "its members are not those that its manifest names")
    for info in found:
        if info.file_size != manifest.members[info.filename].bytes:
            raise _damaged(path, f"{info.filename} has another size than its manifest says")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _damaged(path, f"{info.filename} is packed in a way that no backup is")
    if manifest.total_bytes > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * size):
        raise _damaged(path, f"it says that {size:,} bytes unpack to {manifest.total_bytes:,}")


def _require_room(path: Path, needed: int, root: Path) -> None:
    """Raises BadInput where the disk of `root` has no room for the `needed` bytes."""
    if needed > (free := shutil.disk_usage(root).free):
        raise BadInput(
            f"{path} needs {needed:,} bytes, and {root} has room for {free:,}.",
            hint="free some space and run it again",
        )


def _unpack_member(path: Path, name: str, member: Member, source: IO[bytes], target: Path) -> None:
    digest, left = hashlib.sha256(), member.bytes
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise _damaged(path, f"{name} is longer than its manifest says")
            digest.update(chunk)
            file.write(chunk)
    if left or digest.hexdigest() != member.sha256:
        raise _damaged(path, f"{name} has another digest than its manifest says")
    sync_file(target)


def _damaged(path: Path, why: str) -> IntegrityFault:
    return IntegrityFault(f"{path} is damaged or no backup: {why}.", hint="use another backup; nothing was changed")
