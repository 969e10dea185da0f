"""What every parser hands over: records, and findings about the file. Knows no format and no limit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from mta_cli.errors import BadInput
from store.records import NewItem

SHOWN = 20
"""How many faults of a file are listed; all are counted."""


class Place(NamedTuple):
    """Where something was found: file, record (counted from 1) and, where it says more, line."""

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
    """One history item, or held-out query, of the user of that name."""

    user: str
    item: NewItem
    place: Place
    held_out: bool = False


class Findings:
    """What a parser found besides records: faults (the first 20 in words, all counted), and things worth saying."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.faults = 0
        self.left_out: Counter[str] = Counter()
        self.ignored: dict[str, None] = {}
        self.spellings: dict[str, set[str]] = {}

    def fault(self, place: Place, what: str, field: str = "") -> None:
        """One thing that makes the file unusable; `field` is the path inside the record."""
        self.faults += 1
        if len(self.lines) < SHOWN:
            self.lines.append(f"{place}{f', field {field}' if field else ''}: {what}")

    def ignore(self, name: str) -> None:
        """A field that no one reads; at most 20 names are kept."""
        if len(self.ignored) < SHOWN:
            self.ignored[name] = None

    def spelled(self, name: str, written: str) -> None:
        """Remember how a user's name was written in the file."""
        self.spellings.setdefault(name, set()).add(written)

    def settle(self, file: str, hint: str | None = None) -> None:
        """Raise `BadInput` with everything found, or return when there was no fault."""
        if not self.faults:
            return
        count = "1 fault" if self.faults == 1 else f"{self.faults:,} faults"
        shown = f" (the first {SHOWN} are shown)" if self.faults > SHOWN else ""
        raise BadInput(f"{file}: {count}{shown}; nothing was imported", hint=hint, faults=tuple(self.lines))


def kind(value: object) -> str:
    """What a JSON value is, in words for the person who wrote the file."""
    if value is None:
        return "null"
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def shown(value: object, most: int = 40) -> str:
    """A value for a message: quoted, control characters escaped, shortened. Never looks into lists and objects."""
    if isinstance(value, list | dict):
        return kind(value)
    if isinstance(value, str):
        return ascii_safe(value[:most]) + ("…" if len(value) > most else "")
    return repr(value)[:most]


def ascii_safe(text: str) -> str:
    """`text` in quotes with everything unprintable escaped; letters of any script stay."""
    return repr(text).encode("utf-8", "backslashreplace").decode("utf-8")
