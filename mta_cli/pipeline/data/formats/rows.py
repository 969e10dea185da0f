"""JSONL and CSV: a record `{user, input, output}`, with `id`, `time` and `task` when known, a line. Knows no store."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mta_cli.pipeline.data.formats.fields import RecordFields
from mta_cli.pipeline.data.formats.parse_results import (
    ParseFindings,
    Record,
    SeenIds,
    SourceLocation,
    format_value,
    json_type_name,
)
from mta_cli.pipeline.data.formats.reading import LINE_BYTES, strict_json_loads
from store.records import NewItem
from store.staged_records import StagedRecords

KNOWN_FIELDS = frozenset({"user", "input", "output", "id", "time", "task"})
_SEPARATORS = (",", ";", "\t")

Lines = Iterable[tuple[int, bytes]]
RawRow = tuple[SourceLocation, Mapping[str, Any]]


def jsonl_rows(lines: Lines, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """The object on every line that is not blank; a line without an object is a fault."""
    number = 0
    for line, content in lines:
        if not content.strip():
            continue
        number += 1
        place = SourceLocation(file, number, line)
        try:
            value = strict_json_loads(content.decode())
        except UnicodeDecodeError as error:
            findings.add_fault(
                place, f"is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start:,} of the line"
            )
        except ValueError as error:
            findings.add_fault(place, f"is not JSON: {error}")
        else:
            if isinstance(value, dict):
                yield place, value
            else:
                findings.add_fault(place, f"is {json_type_name(value)}, not an object")


def csv_rows(lines: Lines, file: str, findings: ParseFindings, required: frozenset[str]) -> Iterator[RawRow]:
    """Every row under the header line; `,`, `;` or tabs separate. Invalid UTF-8 bytes become lone surrogates."""
    numbered = iter(lines)
    head = next(((line, text) for line, text in _decode_lines(numbered) if text.strip()), None)
    if head is None:
        return
    separator = max(_SEPARATORS, key=lambda each: len(required & set(_split_header(head[1], each))))
    names = _split_header(head[1], separator)
    faults = _header_faults(names, required)
    for fault in faults:
        findings.add_fault(SourceLocation(file), fault, "header")
    if not faults:
        yield from _read_csv_body(numbered, names, separator, file, findings)


def _read_csv_body(
    lines: Iterator[tuple[int, bytes]], names: list[str], separator: str, file: str, findings: ParseFindings
) -> Iterator[RawRow]:
    at = [1]

    def texts() -> Iterator[str]:
        for line, text in _decode_lines(lines):
            at[0] = line
            yield text

    csv.field_size_limit(LINE_BYTES)
    number = 0
    try:
        for cells in csv.reader(texts(), delimiter=separator, strict=True):
            if not any(cells):
                continue
            number += 1
            place = SourceLocation(file, number, at[0])
            if len(cells) == len(names):
                yield place, dict(zip(names, cells, strict=True))
            else:
                findings.add_fault(place, f"has {len(cells)} cells where the header has {len(names)}")
    except csv.Error as error:
        findings.add_fault(SourceLocation(file, number + 1, at[0]), f"is not CSV: {error}")


def _decode_lines(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
    return ((line, content.decode("utf-8", "surrogateescape")) for line, content in lines)


def _split_header(header: str, separator: str) -> list[str]:
    try:
        cells = next(csv.reader([header], delimiter=separator), [])
    except csv.Error:
        return []
    return [cell.strip().casefold() for cell in cells]


def _header_faults(names: list[str], required: frozenset[str]) -> list[str]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    faults = [f"the column {format_value(name)} stands there twice" for name in twice]
    missing = sorted(required - set(names))
    if missing:
        there = ", ".join(format_value(name) for name in names[:12])
        faults.append(f"no column {' and none '.join(missing)}; there are {there}")
    return faults


def parse_rows(
    rows: Iterable[RawRow], task: str, findings: ParseFindings, staged: StagedRecords, user: str | None = None
) -> Iterator[Record]:
    """History items of the rows, staged. `task` is for rows that name none; `user`, when given, is that of the file."""
    ids = SeenIds(findings, staged)
    for place, values in rows:
        fields = RecordFields(values, place, findings)
        for field in sorted(values.keys() - KNOWN_FIELDS):
            findings.add_ignored_field(field)
        owner = _record_user(fields, user)
        question, answer, time = fields.read_text_field("input"), fields.read_scalar("output"), fields.read_time("time")
        of = fields.read_scalar("task") if fields.has_value("task") else task
        key = fields.read_id() if fields.has_value("id") else ""
        if owner is None or question is None or answer is None or of is None or key is None:
            continue
        if not key:
            digest = content_key(question, answer, time)
            key = f"{digest}.{staged.count_occurrence(owner, of, digest)}"
        record = Record(owner, NewItem(key, of, question, answer, time), place)
        if ids.add_if_new(record, "id"):
            yield record


def _record_user(fields: RecordFields, user: str | None) -> str | None:
    if user is None:
        return fields.read_user("user")
    if fields.has_value("user") and (named := fields.read_user("user")) is not None and named != user:
        fields.add_field_fault("user", f"is {format_value(named)}, but this is the history of {format_value(user)}")
        return None
    return user


def content_key(question: str, answer: str, time: str | None) -> str:
    """An id made of an item's content, so that the same item gets the same id in every import."""
    digest = hashlib.sha256()
    for part in (question, answer, time or ""):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return f"content-{digest.hexdigest()[:24]}"
