"""Templates with `{column}`, filled from a row. An empty cell removes its brackets and the words before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mta_cli.errors import UsageError

_TOKEN = re.compile(r"\{([^{}]*)\}|([(\[])|([)\]])")
_CLOSING = {"(": ")", "[": "]"}
_SEPARATORS = " \t\n.,;:!/|·–—-"


@dataclass(frozen=True)
class _Cell:
    """A column's cell."""

    column: str


@dataclass(frozen=True)
class _Brackets:
    """Cells in brackets, which are dropped together when all are empty."""

    opening: str
    parts: tuple[_Part, ...]
    closing: str


_Part = str | _Cell | _Brackets


@dataclass(frozen=True)
class ColumnTemplate:
    """A parsed template, or the name of one column."""

    parts: tuple[_Part, ...]

    @classmethod
    def parse(cls, text: str) -> ColumnTemplate:
        """Parse a template with `{column}`; a text without braces is the name of one column.

        Raises UsageError if braces do not contain the name of one column.
        """
        if "{" not in text and "}" not in text:
            return cls((_Cell(text.strip()),))
        rest = _TOKEN.sub(lambda found: "" if found[1] and found[1].strip() else found[0], text)
        if "{" in rest or "}" in rest:
            raise UsageError(
                f"{text!r} is not a template: braces must contain the name of one column",
                hint='for example "{title} ({year})"',
            )
        return cls(_parse_parts(text))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in the template, in order."""
        return tuple(_columns(self.parts))

    def fill(self, cell: Callable[[str], str]) -> str:
        """The filled template; `cell` returns a column's text. The result is empty if all cells are.

        The words before an empty cell are removed, and the words after the last cell if that is empty.
        """
        return _fill(self.parts, cell)


def _parse_parts(text: str) -> tuple[_Part, ...]:
    open_parts: list[tuple[str, list[_Part]]] = [("", [])]
    end = 0
    for token in _TOKEN.finditer(text):
        open_parts[-1][1].append(text[end : token.start()])
        end = token.end()
        column, opening, closing = token.groups()
        if column:
            open_parts[-1][1].append(_Cell(column.strip()))
        elif opening:
            open_parts.append((opening, []))
        elif _CLOSING.get(open_parts[-1][0]) == closing:
            begun, parts = open_parts.pop()
            whole = [_Brackets(begun, tuple(parts), closing)] if any(_columns(parts)) else [begun, *parts, closing]
            open_parts[-1][1].extend(whole)
        else:
            open_parts[-1][1].append(closing)
    open_parts[-1][1].append(text[end:])
    while len(open_parts) > 1:  # an unclosed bracket is plain text
        begun, parts = open_parts.pop()
        open_parts[-1][1].extend([begun, *parts])
    return tuple(open_parts[0][1])


def _columns(parts: Sequence[_Part]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, _Cell):
            yield part.column
        elif isinstance(part, _Brackets):
            yield from _columns(part.parts)


def _fill(parts: Sequence[_Part], cell: Callable[[str], str]) -> str:
    text, words, last_is_empty, skipped = "", "", False, False
    for part in parts:
        if isinstance(part, str):
            words += part
            continue
        value = cell(part.column).strip() if isinstance(part, _Cell) else _fill(part.parts, cell)
        if value and isinstance(part, _Brackets):
            value = f"{part.opening}{value}{part.closing}"
        last_is_empty = not value
        skipped = skipped or last_is_empty
        if value:
            text += (words.lstrip(_SEPARATORS) if skipped and not text else words) + value
        words = ""
    return text if last_is_empty else text + words
