"""Reads and checks the fields of one record; faults go to the findings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation, format_value, json_type_name
from mta_cli.pipeline.data.formats.timestamps import normalise_time
from store.names import check_name

MAX_TEXT_CHARS = 10_000_000
MAX_ID_CHARS = 500
_check_name = lru_cache(maxsize=4096)(check_name)


class RecordFields:
    """The fields of one JSON object or CSV row. Every reader returns None if the field is missing or faulty."""

    def __init__(
        self, values: Mapping[str, Any], place: SourceLocation, findings: ParseFindings, inside: str = ""
    ) -> None:
        self.values = values
        self.location = place
        self.findings = findings
        self.inside = inside

    @classmethod
    def from_value(
        cls, value: object, place: SourceLocation, findings: ParseFindings, inside: str = ""
    ) -> RecordFields | None:
        """Fields of a value that should be an object, or None with a fault."""
        if isinstance(value, dict):
            return cls(value, place, findings, inside)
        findings.add_fault(place, f"is {json_type_name(value)}, not an object", inside)
        return None

    def path(self, name: str) -> str:
        """A field's path inside its record."""
        return f"{self.inside}.{name}" if self.inside else name

    def add_field_fault(self, name: str, what: str) -> None:
        """Add a fault of the field `name` to the findings."""
        self.findings.add_fault(self.location, what, self.path(name))

    def has_value(self, name: str) -> bool:
        """Whether the field exists and is neither null nor an empty text."""
        value = self.values.get(name)
        return value is not None and not (isinstance(value, str) and not value.strip())

    def is_blank(self, name: str) -> bool:
        """Whether the field is a text without visible characters."""
        value = self.values.get(name)
        return isinstance(value, str) and not value.strip()

    def read_text_field(self, name: str) -> str | None:
        """The text of a required field."""
        return self._check_text(name, self.values.get(name))

    def read_scalar(self, name: str) -> str | None:
        """The text of a required field that may be a number: an id, a name, a label, a score."""
        value = self.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value != value or value in (float("inf"), float("-inf")):
                self.add_field_fault(name, "is not a finite number")
                return None
            return str(value)
        return self._check_text(name, value)

    def read_id(self, name: str = "id") -> str | None:
        """The text of a required id field."""
        value = self.read_scalar(name)
        if value is not None and len(value) > MAX_ID_CHARS:
            self.add_field_fault(name, f"has {len(value):,} characters; the most is {MAX_ID_CHARS}")
            return None
        return value

    def read_user(self, name: str) -> str | None:
        """A required user's name in its stored form, which is added to the file's users."""
        stored = self.read_name(name)
        if stored is not None:
            self.findings.users[stored] = None
        return stored

    def read_name(self, name: str) -> str | None:
        """A required user's name in its stored form."""
        written = self.read_scalar(name)
        if written is None:
            return None
        try:
            return _check_name(written)
        except BadInput as error:
            self.add_field_fault(name, str(error))
            return None

    def read_time(self, *names: str, may_fail: bool = False) -> str | None:
        """The first filled field among `names`, as a normalised time; None without one.

        An unreadable time is a fault; with `may_fail` it is counted and left out.
        """
        name = next((each for each in names if self.has_value(each)), None)
        if name is None:
            return None
        value = self.values[name]
        try:
            if not isinstance(value, str | int | float):
                raise ValueError
            return normalise_time(str(value))
        except ValueError:
            what = f"{format_value(value)} is not an ISO 8601 date or time, like 2026-08-01 or 2026-08-01T12:30:00Z"
            if may_fail:
                self.findings.add_unread_time(self.location, what)
            else:
                self.add_field_fault(name, what)
            return None

    def read_objects(self, name: str, *, required: bool = True) -> list[RecordFields]:
        """The objects of a list field; other members are faults."""
        value = self.values.get(name)
        if value is None and not required:
            return []
        if not isinstance(value, list):
            self.add_field_fault(
                name, "is missing" if name not in self.values else f"is {json_type_name(value)}, not a list"
            )
            return []
        inner = ((each, f"{self.path(name)}[{index}]") for index, each in enumerate(value))
        found = (RecordFields.from_value(each, self.location, self.findings, path) for each, path in inner)
        return [fields for fields in found if fields is not None]

    def _check_text(self, name: str, value: object) -> str | None:
        what = "is missing" if name not in self.values else text_fault(value)
        if what:
            self.add_field_fault(name, what)
            return None
        return str(value)


def text_fault(value: object) -> str | None:
    """The reason why a value cannot be stored as text and shown to a model; None if it can."""
    if not isinstance(value, str):
        return f"is {json_type_name(value)}, not text"
    if not value.strip():
        return "is empty"
    if len(value) > MAX_TEXT_CHARS:
        return f"has {len(value):,} characters; the most is {MAX_TEXT_CHARS:,}"
    if "\0" in value:
        return "contains a NUL character"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"is not UTF-8: character {error.start + 1:,} is a stray byte or half of a surrogate pair"
    return None
