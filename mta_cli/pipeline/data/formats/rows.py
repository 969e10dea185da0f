"""Turns rows of named cells into records with user, input, output, and id, time and task if the row has them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mta_cli.engine.text.labels import format_number, parse_number, round_number
from mta_cli.pipeline.data.column_mapping import REQUIRED_PARTS, ColumnMapping
from mta_cli.pipeline.data.formats.fields import RecordFields
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record, SeenIds, SourceLocation, format_value
from store.records import NewItem
from store.staged_records import StagedRecords

RawRow = tuple[SourceLocation, Mapping[str, Any]]

DEFAULT_COLUMNS = ColumnMapping()
CONTENT_PREFIX = "content-"
NO_NUMBER = "rows whose output is not a number"
_SCALE_TOLERANCE = 1e-6  # labels that are numbers are written with at most six decimals


def parse_rows(
    rows: Iterable[RawRow],
    task: str,
    findings: ParseFindings,
    staged: StagedRecords,
    user: str | None = None,
    columns: ColumnMapping = DEFAULT_COLUMNS,
    round_to: float = 0.0,
    keep_untimed: bool = False,
    scale: tuple[float, float] = (-math.inf, math.inf),
) -> Iterator[Record]:
    """Stage the history items of the rows. `task` is for rows without one; `user`, if given, is the user of all rows.

    With mapped columns, or `round_to`, a row with an empty required part is left out and counted. With `round_to`,
    outputs are numbers and are rounded to multiples of it (exact multiples keep their text); a row whose output is not
    a number or lies outside `scale` is left out and counted. With `keep_untimed`, a row with an unreadable time is kept
    without it and counted.
    """
    ids = SeenIds(findings, staged)
    needed = REQUIRED_PARTS if user is None else REQUIRED_PARTS[1:]
    may_be_blank = () if columns.is_default and not round_to else needed
    for place, row in rows:
        fields = RecordFields(columns.read(row, place.file), place, findings)
        for column in row:
            if column.casefold() not in columns.read_columns:
                findings.add_ignored_field(column)
        blank = next((part for part in may_be_blank if not fields.has_value(part)), None)
        if blank is not None:
            findings.skip_counts[f"rows without {blank}"] += 1
            continue
        owner = _record_user(fields, user)
        question, answer = fields.read_text_field("input"), fields.read_scalar("output")
        of = fields.read_scalar("task") if fields.has_value("task") else task
        if answer is not None and round_to and place not in findings.skipped_places:
            number = parse_number(answer.strip())
            if number is None:
                findings.skip_counts[NO_NUMBER] += 1
                continue
            rounded = round_number(number, round_to)
            if not scale[0] - _SCALE_TOLERANCE <= rounded <= scale[1] + _SCALE_TOLERANCE:
                findings.skip_counts[f"rows whose output is outside the scale {scale[0]:g} to {scale[1]:g}"] += 1
                continue
            if not math.isclose(rounded, number, abs_tol=1e-9):
                answer = format_number(rounded)
        time = fields.read_time("time", may_fail=keep_untimed)
        key = fields.read_id() if fields.has_value("id") else ""
        if owner is None or question is None or answer is None or of is None or key is None:
            continue
        if place in findings.skipped_places:
            continue
        if not key:
            digest = content_key(question, answer, time)
            key = f"{digest}.{staged.count_occurrence(owner, of, digest)}"
        record = Record(owner, NewItem(key, of, question, answer, time), place)
        if ids.add_if_new(record, "id"):
            findings.users[owner] = None
            yield record


def _record_user(fields: RecordFields, user: str | None) -> str | None:
    if user is None:
        return fields.read_name("user")
    if fields.has_value("user") and (named := fields.read_name("user")) is not None and named != user:
        fields.add_field_fault("user", f"is {format_value(named)}, but this is the history of {format_value(user)}")
        return None
    return user


def is_content_key(key: str) -> bool:
    """Whether an id is a hash of its item's content."""
    return key.startswith(CONTENT_PREFIX)


def content_key(question: str, answer: str, time: str | None) -> str:
    """An id that is a hash of an item's content, so that the same item gets the same id in every import."""
    digest = hashlib.sha256()
    for part in (question, answer, time or ""):
        content = part.encode()
        digest.update(len(content).to_bytes(8, "big") + content)
    return f"{CONTENT_PREFIX}{digest.hexdigest()[:24]}"
