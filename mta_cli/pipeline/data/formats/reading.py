"""Opens files and reads them as lines of text or JSON, within limits on size and depth."""

from __future__ import annotations

import codecs
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from mta_cli.errors import BadInput, NotFound, system_reason
from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, escape_unprintable
from mta_cli.plain_file import refuse_special_file
from store.files import missing_file_hint

FILE_BYTES = 1 << 30
"""The largest file that is read, in bytes."""
LINE_BYTES = 10_000_000
"""The longest line of a JSONL or CSV file, in bytes."""
MBOX_BYTES = 1 << 36
"""The largest mailbox that is read, in bytes. Most of its bytes are attachments, which are skipped."""

BOM = b"\xef\xbb\xbf"
"""UTF-8's byte order mark."""
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COPIED_BYTES = 1 << 20
_IN_MEMORY_BYTES = 16 << 20  # a longer copy of a pipe, or of a recoded file, goes to an unnamed temporary file
_FOREIGN_MAGIC = {
    b"\xff\xfe": ("is UTF-16, not UTF-8", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16, not UTF-8", "save it as UTF-8"),
    b"\x1f\x8b": ("is compressed with gzip", "unpack it first: gunzip"),
    b"PK\x03\x04": ("is a zip archive or a spreadsheet", "unpack it, or save it as CSV"),
}


@contextmanager
def open_file(path: Path | ArchivedFile) -> Iterator[BinaryIO]:
    """The file, open for reading. Raises `NotFound`, or `BadInput` if it is unreadable or too large.

    The limit is `FILE_BYTES`, for a mailbox `MBOX_BYTES`.
    """
    if isinstance(path, ArchivedFile):
        with path.open() as stream:
            yield stream
        return
    try:
        with _open(path) as stream:
            info = os.fstat(stream.fileno())
            if stat.S_ISREG(info.st_mode) and info.st_size > FILE_BYTES and not _may_be_larger(stream, info.st_size):
                raise_too_large(path, info.st_size)
            yield stream
    except OSError as error:
        raise BadInput(f"{escape_unprintable(str(path))} cannot be read: {system_reason(error)}") from error


@contextmanager
def open_rewindable(path: Path | ArchivedFile) -> Iterator[BinaryIO]:
    """The file, open for reading and rewindable: a pipe is copied, and UTF-16 with a byte order mark becomes UTF-8."""
    with open_file(path) as stream:
        seekable = stream.seekable()
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as spooled:
            copy = cast(BinaryIO, spooled)
            if not seekable:
                _copy(stream, copy, path, None)
                stream = copy
            start = stream.read(2)
            stream.seek(0)
            if start not in _UTF16_MARKS:
                yield stream
                return
            with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as recoded:
                _copy(stream, cast(BinaryIO, recoded), path, codecs.getincrementaldecoder("utf-16")())
                yield cast(BinaryIO, recoded)


def _copy(
    stream: BinaryIO, copy: BinaryIO, path: Path | ArchivedFile, decoder: codecs.IncrementalDecoder | None
) -> None:
    """Copy a stream, recoded as UTF-8 if there is a decoder, and rewind the copy."""
    total = 0
    try:
        while piece := stream.read(_COPIED_BYTES):
            total += len(piece)
            if total > FILE_BYTES:
                raise_too_large(path, total)
            copy.write(piece if decoder is None else decoder.decode(piece).encode())
        if decoder is not None:
            copy.write(decoder.decode(b"", final=True).encode())
    except UnicodeError as error:
        raise BadInput(f"{path.name} is not valid UTF-16", hint="save it as UTF-8") from error
    copy.seek(0)


def _open(path: Path) -> BinaryIO:
    name = escape_unprintable(str(path))
    try:
        refuse_special_file(path)
        return path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {name}", hint=missing_file_hint(path)) from error
    except IsADirectoryError as error:
        raise BadInput(f"{name} is a directory, not a file") from error
    except ValueError as error:
        raise BadInput(f"{name} is not a path: {error}") from error


def _may_be_larger(stream: BinaryIO, size: int) -> bool:
    start = stream.read(5)
    stream.seek(0)
    return start == b"From " and size <= MBOX_BYTES


def raise_too_large(path: Path | ArchivedFile, size: int) -> NoReturn:
    """Raise `BadInput` for a file above `FILE_BYTES`."""
    raise BadInput(
        f"{path.name} has {size / 2**20:,.0f} MiB; the most is {FILE_BYTES / 2**20:,.0f} MiB",
        hint="split the file and import its parts one after another; each import adds to the users' histories",
    )


def strict_json_loads(text: str) -> Any:
    """`json.loads` that refuses NaN, infinities and too deep nesting. Raises only ValueError or a subclass."""
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error


def reject_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and infinities, which Python's JSON accepts."""
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=reject_constant)


def reject_magic_bytes(start: bytes, file: str) -> None:
    """Raises `BadInput` if the file's first bytes belong to another encoding or format."""
    for magic, (what, hint) in _FOREIGN_MAGIC.items():
        if start.startswith(magic):
            raise BadInput(f"{file} {what}", hint=hint)


def decode_utf8(content: bytes, file: str) -> str:
    """UTF-8 bytes as text, without a byte order mark. Raises `BadInput` with the first wrong byte and its offset."""
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise_not_utf8(file, error, 3 if content.startswith(BOM) else 0)


def raise_not_utf8(file: str, error: UnicodeDecodeError, before: int) -> NoReturn:
    """Raise `BadInput` for the invalid byte; `before` is the offset of the error's bytes in the file."""
    byte, offset = error.object[error.start], before + error.start
    raise BadInput(f"{file} is not UTF-8: byte 0x{byte:02x} at offset {offset:,}", hint="save it as UTF-8") from error


def iter_lines(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line with its end) of a stream. A line longer than `LINE_BYTES` is a fault and left
    out.
    """
    number, total = 0, 0
    while line := stream.readline(LINE_BYTES + 1):
        number += 1
        if number == 1:
            reject_magic_bytes(line, file)
            line = line.removeprefix(BOM)
        total += len(line)
        if len(line) > LINE_BYTES:
            findings.add_fault(SourceLocation(file, number), f"the line is longer than {LINE_BYTES:,} bytes")
            total += _skip_line(stream, line)
            continue
        if total > FILE_BYTES:
            raise_too_large(Path(file), total)
        yield number, line


def _skip_line(stream: BinaryIO, piece: bytes) -> int:
    """Skip the rest of the line that begins with `piece`; returns the skipped bytes, about `FILE_BYTES` at most."""
    skipped = 0
    while piece and not piece.endswith(b"\n") and skipped <= FILE_BYTES:
        piece = stream.readline(LINE_BYTES)
        skipped += len(piece)
    return skipped
