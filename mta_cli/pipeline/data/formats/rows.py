"""JSONL and CSV: a record `{user, input, output}`, with `id`, `time` and `task` when known, a line. Knows no store."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mta_cli.pipeline.data.formats.fields import Fields
from mta_cli.pipeline.data.formats.findings import Findings, Place, Record, kind, shown
from mta_cli.pipeline.data.formats.ids import Ids
from mta_cli.pipeline.data.formats.reading import LINE_BYTES, loads
from store.records import NewItem

KNOWN = frozenset({"user", "input", "output", "id", "time", "task"})
_SEPARATORS = (",", ";", "\t")

Lines = Iterable[tuple[int, bytes]]
Row = tuple[Place, Mapping[str, Any]]


def jsonl_rows(lines: Lines, file: str, findings: Findings) -> Iterator[Row]:
    """The object on every line that is not blank; a line that holds none is a fault."""
    number = 0
    for line, content in lines:
        if not content.strip():
            continue
        number += 1
        place = Place(file, number, line)
        try:
            value = loads(content.decode())
        except UnicodeDecodeError as error:
            findings.fault(
                place, f"is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start:,} of the line"
            )
        except ValueError as error:
            findings.fault(place, f"is not JSON: {error}")
        else:
            if isinstance(value, dict):
                yield place, value
            else:
                findings.fault(place, f"is {kind(value)}, not an object")


def csv_rows(lines: Lines, file: str, findings: Findings, required: frozenset[str]) -> Iterator[Row]:
    """Every row under the header line; `,`, `;` or tabs separate. Bytes that are no UTF-8 become lone surrogates."""
    numbered = iter(lines)
    head = next(((line, text) for line, text in _texts(numbered) if text.strip()), None)
    if head is None:
        return
    separator = max(_SEPARATORS, key=lambda each: len(required & set(_names(head[1], each))))
    names = _names(head[1], separator)
    faults = _header_faults(names, required)
    for fault in faults:
        findings.fault(Place(file), fault, "header")
    if not faults:
        yield from _body(numbered, names, separator, file, findings)


def _body(
    lines: Iterator[tuple[int, bytes]], names: list[str], separator: str, file: str, findings: Findings
) -> Iterator[Row]:
    at = [1]

    def texts() -> Iterator[str]:
        for line, text in _texts(lines):
            at[0] = line
            yield text

    csv.field_size_limit(LINE_BYTES)
    number = 0
    try:
        for cells in csv.reader(texts(), delimiter=separator, strict=True):
            if not any(cells):
                continue
            number += 1
            place = Place(file, number, at[0])
            if len(cells) == len(names):
                yield place, dict(zip(names, cells, strict=True))
            else:
                findings.fault(place, f"has {len(cells)} cells where the header has {len(names)}")
    except csv.Error as error:
        findings.fault(Place(file, number + 1, at[0]), f"is not CSV: {error}")


def _texts(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, str]]:
    return ((line, content.decode("utf-8", "surrogateescape")) for line, content in lines)


def _names(header: str, separator: str) -> list[str]:
    try:
        cells = next(csv.reader([header], delimiter=separator), [])
    except csv.Error:
        return []
    return [cell.strip().casefold() for cell in cells]


def _header_faults(names: list[str], required: frozenset[str]) -> list[str]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    faults = [f"the column {shown(name)} stands there twice" for name in twice]
    missing = sorted(required - set(names))
    if missing:
        there = ", ".join(shown(name) for name in names[:12])
        faults.append(f"no column {' and none '.join(missing)}; there are {there}")
    return faults


def parse_rows(rows: Iterable[Row], task: str, findings: Findings, user: str | None = None) -> Iterator[Record]:
    """History items of the rows. `task` is for rows that name none; `user`, when given, is whose file it is."""
    ids, occurrences = Ids(findings), Counter[tuple[str, str, str]]()
    for place, values in rows:
        fields = Fields(values, place, findings)
        for field in sorted(values.keys() - KNOWN):
            findings.ignore(field)
        owner = _owner(fields, user)
        question, answer, time = fields.text("input"), fields.word("output"), fields.time("time")
        of = fields.word("task") if fields.has("task") else task
        key = fields.key() if fields.has("id") else ""
        if owner is None or question is None or answer is None or of is None or key is None:
            continue
        if not key:
            digest = content_key(question, answer, time)
            occurrences[owner, of, digest] += 1
            key = f"{digest}.{occurrences[owner, of, digest]}"
        record = Record(owner, NewItem(key, of, question, answer, time), place)
        if ids.first(record, "id"):
            yield record


def _owner(fields: Fields, user: str | None) -> str | None:
    if user is None:
        return fields.user("user")
    if fields.has("user") and (named := fields.user("user")) is not None and named != user:
        fields.fault("user", f"is {shown(named)}, but this is the history of {shown(user)}")
        return None
    return user


def content_key(question: str, answer: str, time: str | None) -> str:
    """An id made of what an item says, so that the same item gets the same id in every import."""
    digest = hashlib.sha256()
    for part in (question, answer, time or ""):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return f"content-{digest.hexdigest()[:24]}"
