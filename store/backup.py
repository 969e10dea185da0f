"""Writes and reads a backup of a whole store: a tar file of a manifest, the database and the adapter files, in this
order.

An archive is untrusted input: only plain files under the names that a backup uses are accepted, and their digests must
match the manifest and the file names. `store.restore` replaces a store with the unpacked files.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import sqlite3
import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import msgspec

from mta_cli.errors import BadInput, Command, IntegrityFault, NotFound, StoreBusy
from mta_cli.plain_file import refuse_special_file
from store.columns import utc_now
from store.files import (
    disk_fault,
    hold_temporary,
    missing_file_hint,
    remove_leftover_temporaries,
    sync_file,
    sync_folder,
)
from store.schema import SCHEMA_VERSION, schema_version

if TYPE_CHECKING:
    from store.registry import Registry

FORMAT_VERSION = 2
MANIFEST_NAME, DATABASE_NAME = "manifest.json", "registry.db"
MAX_MANIFEST_BYTES = 2**16
MAX_ATTEMPTS = 5  # another process may remove an adapter after the database is copied and before its file is copied
_CHUNK_BYTES = 2**20
_ADAPTER_PATTERN = re.compile(r"adapters/([0-9a-f]{2})/(\1[0-9a-f]{62})\.safetensors")

_Count = Annotated[int, msgspec.Meta(ge=0)]


class Manifest(msgspec.Struct, frozen=True):
    """The first file of a backup. `schema`, `sha256` and `bytes` describe the database; `created` is ISO 8601.

    Later formats keep these fields, so that an older program can still say that the backup is too new for it.
    """

    format: Literal["mta backup"]
    version: _Count
    created: str
    program: str
    schema: _Count
    users: _Count
    adapters: _Count
    sha256: str
    bytes: _Count


class _RemovedMeanwhileError(Exception):
    """Another process removed an adapter that is still recorded in the copied database."""


def create_backup(reg: Registry, path: Path, program: str) -> Generator[str, None, Manifest]:
    """Write the store to an archive, as a whole or not at all; yields the name of each file in it once it is written.

    Returns the manifest. `program` is the version of mta that writes it. Raises BadInput when the archive cannot be
    written, IntegrityFault for a damaged adapter file, StoreBusy when other processes removed adapters during every
    attempt.
    """
    folder = path.parent
    if not folder.is_dir():
        raise BadInput(f"There is no folder {folder}.", hint="create it, or write the backup to another folder")
    try:
        remove_leftover_temporaries(folder)
        for _ in range(MAX_ATTEMPTS):
            with suppress(_RemovedMeanwhileError), hold_temporary(folder) as copy, hold_temporary(folder) as archive:
                reg.copy_database(copy)
                manifest = yield from _write_archive(reg, copy, archive, program)
                sync_file(archive)
                archive.replace(path)
                sync_folder(folder)
                return manifest
    except OSError as error:
        raise disk_fault(path, error) from error
    raise StoreBusy(
        f"No backup was made: in each of {MAX_ATTEMPTS} attempts, another process removed adapters during the copy.",
        hint="wait until other mta commands have ended, then run the backup again",
    )


def _write_archive(reg: Registry, copy: Path, archive: Path, program: str) -> Generator[str, None, Manifest]:
    with closing(sqlite3.connect(copy)) as conn:
        schema = schema_version(conn)
        users = conn.execute("SELECT count(*) FROM users").fetchone()[0]
        digests = [digest for (digest,) in conn.execute("SELECT digest FROM adapters ORDER BY digest")]
    # GNU's format stores the size of a file above 8 GiB in its own header; `_read_headers` reads no extension headers.
    with copy.open("rb") as database, tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as target:
        digest, size = hashlib.file_digest(database, "sha256").hexdigest(), database.tell()
        manifest = Manifest("mta backup", FORMAT_VERSION, utc_now(), program, schema, users, len(digests), digest, size)
        text = msgspec.json.format(msgspec.json.encode(manifest))
        _add_member(target, MANIFEST_NAME, io.BytesIO(text), len(text))
        database.seek(0)
        _add_member(target, DATABASE_NAME, database, size)
        yield DATABASE_NAME
        for digest in digests:
            content, name = _read_adapter(reg, digest), f"adapters/{digest[:2]}/{digest}.safetensors"
            _add_member(target, name, io.BytesIO(content), len(content))
            yield name
    return manifest


def _add_member(target: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    target.addfile(member, content)


def _read_adapter(reg: Registry, digest: str) -> bytes:
    try:
        return reg.files.read(digest)
    except IntegrityFault:
        if not reg.adapters.is_recorded(digest):
            raise _RemovedMeanwhileError from None
        raise


def unpack_backup(path: Path, root: Path, *, has_old: bool) -> Generator[str, None, Manifest]:
    """Unpack and verify an archive into `root`, an empty folder; yields the name of each file once it is unpacked.

    Returns the manifest. `has_old`: a store is replaced, so the disk also needs room for a second copy of the database.
    Raises NotFound for a missing file, BadInput for a file that is not a backup or is too large for the disk,
    IntegrityFault for a backup that is damaged or was written by a newer program.
    """
    try:
        refuse_special_file(path)
        with path.open("rb") as file:
            headers = _read_headers(path, file)
            manifest = _read_manifest(path, file, headers)
            _require_room(path, path.stat().st_size + has_old * manifest.bytes, root)
            for name, size in headers:
                adapter = _ADAPTER_PATTERN.fullmatch(name)
                if name != DATABASE_NAME and adapter is None:
                    raise _damaged(path, f"it contains {name[:120]!r}, which is not a file of a backup")
                if (target := root / name).exists():
                    raise _damaged(path, f"it contains {name} twice")
                if _unpack_member(file, size, target) != (adapter[2] if adapter else manifest.sha256):
                    raise _damaged(path, f"the content of {name} does not match its SHA-256")
                yield name
            if not (root / DATABASE_NAME).exists():
                raise _damaged(path, "it contains no database")
    except FileNotFoundError as error:
        hint = missing_file_hint(path, ("check the backup's path; ", Command("backup", "FILE"), " makes a backup"))
        raise NotFound(f"There is no file {path}.", hint=hint) from error
    except OSError as error:
        raise disk_fault(path, error, "unpacked") from error
    return manifest


def _read_headers(path: Path, file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Yields name and size of each file in the archive; the caller reads its content before asking for the next.

    `tarfile.open` is not used because it follows links, makes devices, and reads headers of any length into memory.
    """
    while (block := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):  # zeros end an archive
        try:
            member = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise _damaged(path, str(error)) from error
        if member.type != tarfile.REGTYPE or member.size < 0:
            raise _damaged(path, f"it contains {member.name[:120]!r}, which is not a plain file")
        yield member.name, member.size
        file.read(-member.size % tarfile.BLOCKSIZE)


def _read_manifest(path: Path, file: IO[bytes], headers: Iterator[tuple[str, int]]) -> Manifest:
    try:
        name, size = next(headers, ("", 0))
    except IntegrityFault:
        name, size = "", 0
    if name != MANIFEST_NAME:
        raise BadInput(f"{path} is not a backup of a store.", hint=(Command("backup", "FILE"), " makes a backup"))
    if size > MAX_MANIFEST_BYTES:
        raise _damaged(path, "its manifest is too large")
    try:
        manifest = msgspec.json.decode(file.read(size), type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"its manifest cannot be read ({error})") from error
    if manifest.version > FORMAT_VERSION or manifest.schema > SCHEMA_VERSION:
        raise IntegrityFault(
            f"{path} was made by a newer mta: it has format {manifest.version} and schema {manifest.schema}; this mta "
            f"reads format {FORMAT_VERSION} and schemas up to {SCHEMA_VERSION}.",
            hint="restore it with the mta that made it",
        )
    return manifest


def _require_room(path: Path, needed: int, root: Path) -> None:
    if needed > (free := shutil.disk_usage(root).free):
        raise BadInput(
            f"Unpacking {path} needs {needed:,} bytes, and the disk of {root} has room for {free:,}.",
            hint="free some space on this disk, then run the command again",
        )


def _unpack_member(file: IO[bytes], size: int, target: Path) -> str:
    """Write the next `size` bytes to a new file that only its owner can read; returns their SHA-256."""
    digest = hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    target.touch(mode=0o600)
    with target.open("wb") as made:
        while size > 0 and (chunk := file.read(min(size, _CHUNK_BYTES))):
            size -= len(chunk)
            digest.update(chunk)
            made.write(chunk)
    sync_file(target)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> IntegrityFault:
    return IntegrityFault(f"The backup {path} is damaged: {why}.", hint="use another backup; the store was not changed")
