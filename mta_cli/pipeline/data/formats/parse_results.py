"""The results of every parser: records, and findings about the file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from mta_cli.errors import BadInput, Words
from store.records import NewItem
from store.staged_records import StagedRecord, StagedRecords

MAX_LISTED_FAULTS = 20
"""At most this many faults of a file are listed; all are counted."""


class SourceLocation(NamedTuple):
    """A location in a file: record (counted from 1) and, if known, line."""

    file: str
    record: int | None = None
    line: int | None = None

    def __str__(self) -> str:
        """`FILE: record N (line L)`, as far as known."""
        if self.record is None:
            return self.file
        line = f" (line {self.line})" if self.line is not None and self.line != self.record else ""
        return f"{self.file}: record {self.record}{line}"


@dataclass(frozen=True, slots=True)
class Record:
    """One history item or held-out query of a user."""

    user: str
    item: NewItem
    location: SourceLocation
    held_out: bool = False


class ParseFindings:
    """A parser's findings: faults (the first 20 described, all counted), counts of left-out records, and notes.

    With `skip_faulty` a faulty record is left out and counted; other faults still make the file unusable. `groups` is
    each user's group in the file, such as a repository. `notes` say what was read, `doubts` what was assumed.
    """

    def __init__(self, *, skip_faulty: bool = False) -> None:
        self.skip_faulty = skip_faulty
        self.skipped_places: set[SourceLocation] = set()
        self.fault_lines: list[str] = []
        self.fault_count = 0
        self.fault_fields: set[str] = set()
        self.skip_counts: Counter[str] = Counter()
        self.unread_times = 0
        self.unread_time_example = ""
        self.notes: list[str] = []
        self.doubts: list[str] = []
        self.ignored_fields: dict[str, None] = {}
        self.users: dict[str, None] = {}
        self.groups: dict[str, str] = {}

    def add_fault(self, place: SourceLocation, what: str, field: str = "", *, of_record: bool = True) -> None:
        """Record a fault: the file becomes unusable, or with `skip_faulty` its record is left out.

        `field` is the path inside the record. Without `of_record` the fault concerns more than the record, and the file
        is unusable in any case.
        """
        if self.skip_faulty and of_record and place.record is not None:
            self.skipped_places.add(place)
        else:
            self.fault_count += 1
        if len(self.fault_lines) < MAX_LISTED_FAULTS:
            self.fault_fields.add(field)
            self.fault_lines.append(f"{place}{f', field {field}' if field else ''}: {what}")

    def add_unread_time(self, place: SourceLocation, what: str) -> None:
        """Count a record that is kept without its unreadable time."""
        if place in self.skipped_places:
            return
        self.unread_times += 1
        self.unread_time_example = self.unread_time_example or f"{place}: {what}"

    def add_ignored_field(self, name: str) -> None:
        """Record the name of a field that is not read; at most 20 names are kept."""
        if len(self.ignored_fields) < MAX_LISTED_FAULTS:
            self.ignored_fields[name] = None

    def raise_faults(self, file: str, hint: Words | None = None) -> None:
        """Raise `BadInput` with all findings if there is any fault."""
        if not self.fault_count:
            return
        self.raise_all(file, hint)

    def raise_all(self, file: str, hint: Words | None = None) -> NoReturn:
        """Raise `BadInput` with all findings, including the faults of skipped records."""
        total = self.fault_count + len(self.skipped_places)
        count = "1 fault" if total == 1 else f"{total:,} faults"
        shown = f" (the first {MAX_LISTED_FAULTS} are shown)" if total > MAX_LISTED_FAULTS else ""
        raise BadInput(f"{file}: {count}{shown}; nothing was imported", hint=hint, faults=tuple(self.fault_lines))


class SeenIds:
    """Stages records and checks that the ids of items and of queries are unique for each user and task."""

    def __init__(self, findings: ParseFindings, staged: StagedRecords) -> None:
        self._findings, self._staged = findings, staged

    def add_if_new(self, record: Record, field: str, *, may_repeat: bool = False) -> bool:
        """Stage the record if its id is new; returns whether it was.

        A used id is a fault; with `may_repeat` only if the content differs.
        """
        place = record.location
        known = self._staged.add(StagedRecord(record.user, record.held_out, record.item, place.record, place.line))
        if known is None:
            return True
        if not (may_repeat and known.same):
            other = " with other content" if may_repeat else ""
            used = f"{format_value(record.item.key)} was already used in record {known.record}{other}"
            self._findings.add_fault(place, used, field)
        return False


def json_type_name(value: object) -> str:
    """The name of a JSON value's type, for messages."""
    if value is None:
        return "null"
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def format_value(value: object, most: int = 40) -> str:
    """A value for a message: quoted, escaped and shortened. Contents of lists and objects are not shown."""
    if isinstance(value, list | dict):
        return json_type_name(value)
    if isinstance(value, str):
        return escape_unprintable(value[:most]) + ("…" if len(value) > most else "")
    return repr(value)[:most]


def escape_unprintable(text: str) -> str:
    """`text` in quotes with unprintable characters escaped; letters of all scripts are kept."""
    return repr(text).encode("utf-8", "backslashreplace").decode("utf-8")
