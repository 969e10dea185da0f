"""Reads and checks the fields of one record; every fault goes to the findings. Knows no format and no task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats.findings import Findings, Place, kind, shown
from mta_cli.pipeline.data.formats.timestamps import sortable
from store.names import check_name

TEXT_LENGTH = 10_000_000
KEY_LENGTH = 500


class Fields:
    """The fields of one JSON object or CSV row. Every reader returns None when the field is absent or at fault."""

    def __init__(self, values: Mapping[str, Any], place: Place, findings: Findings, inside: str = "") -> None:
        self.values = values
        self.place = place
        self.findings = findings
        self.inside = inside

    @classmethod
    def of(cls, value: object, place: Place, findings: Findings, inside: str = "") -> Fields | None:
        """Fields of a value that should be an object, or None with a fault."""
        if isinstance(value, dict):
            return cls(value, place, findings, inside)
        findings.fault(place, f"is {kind(value)}, not an object", inside)
        return None

    def path(self, name: str) -> str:
        """A field's path inside its record."""
        return f"{self.inside}.{name}" if self.inside else name

    def fault(self, name: str, what: str) -> None:
        """Report a field."""
        self.findings.fault(self.place, what, self.path(name))

    def has(self, name: str) -> bool:
        """Whether the field is there and says something: null and empty text do not."""
        value = self.values.get(name)
        return value is not None and not (isinstance(value, str) and not value.strip())

    def blank(self, name: str) -> bool:
        """Whether the field is there as text without a visible character."""
        value = self.values.get(name)
        return isinstance(value, str) and not value.strip()

    def text(self, name: str) -> str | None:
        """A required text."""
        return self._text(name, self.values.get(name))

    def word(self, name: str) -> str | None:
        """A required text that may be written as a number: an id, a name, a label, a score."""
        value = self.values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if value != value or value in (float("inf"), float("-inf")):
                self.fault(name, "is not a finite number")
                return None
            return str(value)
        return self._text(name, value)

    def key(self, name: str = "id") -> str | None:
        """A required id."""
        value = self.word(name)
        if value is not None and len(value) > KEY_LENGTH:
            self.fault(name, f"has {len(value):,} characters; the most is {KEY_LENGTH}")
            return None
        return value

    def user(self, name: str) -> str | None:
        """A required user's name in the form in which it is stored."""
        written = self.word(name)
        if written is None:
            return None
        try:
            stored = _checked_name(written)
        except BadInput as error:
            self.fault(name, error.message)
            return None
        self.findings.spelled(stored, written)
        return stored

    def time(self, *names: str) -> str | None:
        """The first of several optional moments, in the form that sorts as text."""
        name = next((each for each in names if self.has(each)), None)
        if name is None:
            return None
        value = self.values[name]
        try:
            if not isinstance(value, str):
                raise ValueError
            return sortable(value)
        except ValueError:
            self.fault(name, f"{shown(value)} is no ISO 8601 date or time, like 2026-08-01 or 2026-08-01T12:30:00Z")
            return None

    def objects(self, name: str, *, required: bool = True) -> list[Fields]:
        """The objects of a list field; members that are none are faults."""
        value = self.values.get(name)
        if value is None and not required:
            return []
        if not isinstance(value, list):
            self.fault(name, "is missing" if name not in self.values else f"is {kind(value)}, not a list")
            return []
        inner = ((each, f"{self.path(name)}[{index}]") for index, each in enumerate(value))
        found = (Fields.of(each, self.place, self.findings, path) for each, path in inner)
        return [fields for fields in found if fields is not None]

    def _text(self, name: str, value: object) -> str | None:
        what = "is missing" if name not in self.values else text_fault(value)
        if what:
            self.fault(name, what)
            return None
        return str(value)


def text_fault(value: object) -> str | None:
    """What is wrong with a value as text that can be stored and shown to a model; None when nothing is."""
    if not isinstance(value, str):
        return f"is {kind(value)}, not text"
    if not value.strip():
        return "is empty"
    if len(value) > TEXT_LENGTH:
        return f"has {len(value):,} characters; the most is {TEXT_LENGTH:,}"
    if "\0" in value:
        return "holds a NUL character"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"is not UTF-8: character {error.start + 1:,} is a stray byte or half of a surrogate pair"
    return None


@lru_cache(maxsize=4096)
def _checked_name(written: str) -> str:
    return check_name(written)
