"""The files of a zip archive, read without unpacking the archive."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from mta_cli.errors import BadInput, system_reason
from mta_cli.pipeline.data.formats.parse_results import escape_unprintable

ENDING, UNPACK = ".zip", "unpack the archive, and give the folder"
MAX_BYTES = 1 << 30
"""The limit in bytes of all texts of an archive together."""
MAX_DIRECTORY_BYTES = 1 << 26
"""The limit in bytes of an archive's file list, which is read into memory."""
TEXT_ENDINGS = frozenset({".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".eml", ".mbox"})

_END = re.compile(re.escape(b"PK\5\6"))
_ZIP64 = b"PK\6\7"
_END_BYTES, _LONGEST_COMMENT, _DIRECTORY_SIZE_AT = 22, 0xFFFF, 12
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError)  # OSError: a damaged archive may name impossible offsets


@dataclass(frozen=True)
class ArchivedFile:
    """A file in an open archive."""

    archive: zipfile.ZipFile
    member: PurePosixPath

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return self.member.name

    @property
    def parent(self) -> PurePosixPath:
        """The file's folder in the archive."""
        return self.member.parent

    def find(self, member: PurePosixPath) -> ArchivedFile | None:
        """The archive's file with the path `member`; None if there is none."""
        return ArchivedFile(self.archive, member) if str(member) in self.archive.NameToInfo else None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The file, open for reading. Raises `BadInput` if it is damaged or encrypted."""
        name = escape_unprintable(self.name)
        try:
            stream = self.archive.open(str(self.member))
        except (RuntimeError, NotImplementedError, *_DAMAGED) as error:
            raise BadInput(f"{name} cannot be unpacked: {error}", hint=UNPACK) from error
        try:
            with stream:
                yield cast(BinaryIO, stream)
        except _DAMAGED as error:
            raise BadInput(
                f"{name} is damaged in the archive: {error}", hint="download or copy the archive again"
            ) from error


def is_archive(path: Path) -> bool:
    """Whether the path is a file with the ending `.zip`."""
    return path.suffix.casefold() == ENDING and path.is_file()


def text_files(path: Path) -> list[ArchivedFile]:
    """The text files in an archive, sorted by name, without hidden ones.

    Raises `BadInput` for an archive that cannot be read or whose texts are too large.
    """
    name = escape_unprintable(path.name)
    try:
        _require_small_directory(path, name)
        archive = zipfile.ZipFile(path)
    except PermissionError as error:
        raise BadInput(f"{name} cannot be read: {system_reason(error)}") from error
    except (ValueError, NotImplementedError, struct.error, *_DAMAGED) as error:
        raise BadInput(
            f"{name} is not a zip archive, or is damaged: {error}", hint="download or copy the archive again"
        ) from error
    texts = [info for info in archive.infolist() if _is_text(info.filename)]
    total = sum(info.file_size for info in texts)
    if total > MAX_BYTES:
        raise BadInput(
            f"the text files in {name} have {total / 2**20:,.0f} MiB; the most is {MAX_BYTES / 2**20:,.0f} MiB",
            hint=UNPACK,
        )
    if not texts:
        raise BadInput(
            f"{name} contains no text files", hint=f"names of text files end in {', '.join(sorted(TEXT_ENDINGS))}"
        )
    return sorted((ArchivedFile(archive, PurePosixPath(info.filename)) for info in texts), key=lambda file: file.member)


def _is_text(name: str) -> bool:
    member = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in member.parts)
    return str(member) == name and not hidden and member.suffix.casefold() in TEXT_ENDINGS


def _require_small_directory(path: Path, name: str) -> None:
    """Raises `BadInput` if the archive's file list would fill the memory, before it is read."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _END_BYTES - _LONGEST_COMMENT - len(_ZIP64) - 20))
        end = stream.read()
    ends = (found.start() + _DIRECTORY_SIZE_AT for found in _END.finditer(end))
    sizes = [int.from_bytes(end[at : at + 4], "little") for at in ends]
    if _ZIP64 in end or max(sizes, default=0) > MAX_DIRECTORY_BYTES:
        raise BadInput(f"{name} is too large: it is a ZIP64 archive or lists too many files", hint=UNPACK)
