"""Detects a file's format by its first bytes, else by its name. Each format's module recognises its own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings
from mta_cli.pipeline.data.formats.reading import (
    BOM,
    LINE_BYTES,
    open_rewindable,
    reject_magic_bytes,
    strict_json_loads,
)

SAMPLE_BYTES = 1 << 16
"""The bytes of a file that are read to recognise its format."""


@dataclass(frozen=True)
class FileSample:
    """The beginning of a file: its name, its first bytes without white space, and its first JSON object.

    `record` is the first member of a JSON list or the first line, if that is an object; otherwise None.
    """

    name: str
    start: bytes
    record: dict[str, Any] | None = None

    @property
    def is_json_list(self) -> bool:
        """Whether a JSON list begins here."""
        return self.start.startswith(b"[")

    @property
    def first_line(self) -> str:
        """The first line of `start`, cut at the end of the sample; invalid UTF-8 bytes are replaced."""
        return self.start.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")


def read_sample(stream: BinaryIO, name: str) -> FileSample:
    """The beginning of a file, which is rewound afterwards. Raises `BadInput` for an empty or compressed file."""
    start = stream.read(SAMPLE_BYTES)
    reject_magic_bytes(start, name)
    start = start.removeprefix(BOM).lstrip(b" \t\r\n")
    stream.seek(0)
    if not start:
        raise BadInput(f"{name} is empty")
    record = _first_record(stream, name, start)
    stream.seek(0)
    return FileSample(name, start, record if isinstance(record, dict) else None)


def _first_record(stream: BinaryIO, name: str, start: bytes) -> object:
    try:
        if start.startswith(b"["):
            return next(iter_array(stream, name, ParseFindings()), None)
        if not start.startswith(b"{"):
            return None
        if b"\n" not in start:  # the first line is longer than the sample
            start = stream.read(LINE_BYTES + SAMPLE_BYTES).removeprefix(BOM).lstrip(b" \t\r\n")
        return strict_json_loads(start.partition(b"\n")[0].decode())
    except (BadInput, ValueError):  # the format's own reader will report the fault
        return None


def detect_format(sample: FileSample) -> str | None:
    """The format of a file by its content, else by its name; None if unknown."""
    found = _recognise(sample)
    ending = Path(sample.name).suffix.casefold()
    return found or next((name for name, each in FORMATS.items() if ending in each.endings), None)


def require_format(sample: FileSample, named: str | None) -> str:
    """The format of a file, which must be `named` if the user gave one. Raises `BadInput` for another or unknown
    format.
    """
    if named is None:
        if found := detect_format(sample):
            return found
        raise BadInput(f"{sample.name} is in no known format", hint=f"known formats: {', '.join(FORMATS)}")
    if not _recognises(named, sample) and (other := _recognise(sample)):
        raise BadInput(
            f"{sample.name} looks like {other}, not {named}",
            hint=f"leave the format out, or use {other}",
        )
    return named


def is_certainly_importable(stream: BinaryIO, name: str) -> bool:
    """Whether a file found in a folder is imported: its format is known, and a table has a table's ending.

    Prose can look like a table. `stream` is at its start, before and after.
    """
    try:
        sample = read_sample(stream, name)
    except BadInput:
        stream.seek(0)
        return False
    found = detect_format(sample)
    return found is not None and (found != "csv" or Path(name).suffix.casefold() in FORMATS[found].endings)


def prefer_non_tables(files: Sequence[ArchivedFile]) -> list[ArchivedFile]:
    """The files of an archive that are recognised as chats, mail or documents; all files if there are none.

    Tables are left out, because an account's export also contains unrelated tables.
    """
    return [file for file in files if _is_not_table(file)] or list(files)


def _is_not_table(file: ArchivedFile) -> bool:
    with open_rewindable(file) as stream:
        try:
            found = _recognise(read_sample(stream, file.name))
        except BadInput:
            return False
    return found is not None and FORMATS[found].kind != "table"


def _recognise(sample: FileSample) -> str | None:
    return next((name for name in FORMATS if _recognises(name, sample)), None)


def _recognises(name: str, sample: FileSample) -> bool:
    return FORMATS[name].kind != "repository" and bool(FORMATS[name].load().recognise(sample))
