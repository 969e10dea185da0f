"""The mapping from a table's columns to the parts of a record: user, input, output, time and id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mta_cli.pipeline.data.column_template import ColumnTemplate

REQUIRED_PARTS = ("user", "input", "output")
"""The required parts of a record; time and id are optional."""
FILE_COLUMN = "file"
"""`{file}` in a template is the file's name without its ending, unless the table has a column with this name."""


@dataclass(frozen=True)
class ColumnMapping:
    """The column, or the template with `{column}`, of each part of a record.

    None means the column with the part's own name; an empty `time` or `id` means no column. A column `id` that is
    mapped to the user is not also read as the id. Column names match exactly or else ignoring case. Without any
    mapping, a column `task` names each row's task.
    """

    user: str | None = None
    input: str | None = None
    output: str | None = None
    time: str | None = None
    id: str | None = None

    @property
    def is_default(self) -> bool:
        """Whether no column was mapped by the user."""
        return all(value is None for value in self._given.values())

    @cached_property
    def templates(self) -> dict[str, ColumnTemplate]:
        """The template of each mapped part. Raises UsageError for an invalid template."""
        return {name: ColumnTemplate.parse(text) for name, text in self._given.items() if text}

    @cached_property
    def _given(self) -> dict[str, str | None]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @cached_property
    def _parts_by_own_name(self) -> frozenset[str]:
        """The parts that are read from the column of their own name."""
        named = self.templates["user"].columns if "user" in self.templates else ()
        names_user = any(column.casefold() == "id" for column in named)
        return frozenset(
            part for part, given in self._given.items() if given is None and not (part == "id" and names_user)
        )

    def merged_over(self, other: ColumnMapping) -> ColumnMapping:
        """A copy of this mapping, in which the parts that it does not map are mapped as in `other`."""
        return replace(other, **{name: text for name, text in self._given.items() if text is not None})

    def missing_parts(self, columns: Sequence[str], *, one_user: bool = False) -> list[str]:
        """The required parts that have neither a mapping nor a column; with `one_user` no user is required."""
        needed = REQUIRED_PARTS[1:] if one_user else REQUIRED_PARTS
        return [name for name in needed if not self._given[name] and find_column(name, columns) is None]

    def unknown_columns(self, columns: Sequence[str]) -> list[str]:
        """The mapped columns that the table does not have."""
        named = dict.fromkeys(column for template in self.templates.values() for column in template.columns)
        return [name for name in named if find_column(name, columns) is None and name != FILE_COLUMN]

    def read(self, row: Mapping[str, Any], file: str) -> dict[str, Any]:
        """The record of a row, by part: mapped parts as text, others as they are in the row, if present."""
        values: dict[str, Any] = {}
        for part in self._given:
            if part in self.templates:
                values[part] = self.templates[part].fill(lambda column: _cell(row, column, file))
            elif part in self._parts_by_own_name and (column := find_column(part, row)) is not None:
                values[part] = row[column]
        if self.is_default and (column := find_column("task", row)) is not None:
            values["task"] = row[column]
        return values

    @cached_property
    def read_columns(self) -> frozenset[str]:
        """The names of the columns that are read, in folded case."""
        named = {column for template in self.templates.values() for column in template.columns}
        named |= self._parts_by_own_name
        return frozenset(name.casefold() for name in named | ({"task"} if self.is_default else set()))

    def flags(self) -> dict[str, str]:
        """The value of the command-line flag of each mapped part, by part."""
        return {name: text for name, text in self._given.items() if text is not None}


def find_column(name: str, columns: Iterable[str]) -> str | None:
    """The column with this name: an exact match, else one ignoring case; None if there is none."""
    if isinstance(columns, Mapping) and name in columns:  # the usual case, called for every cell of a file
        return name
    there = list(columns)
    if name in there:
        return name
    return next((column for column in there if column.casefold() == name.casefold()), None)


def cell_text(value: object) -> str:
    """A cell as text: lists joined by commas; nothing for null, NaN and objects."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(value) if math.isfinite(value) else ""
    if isinstance(value, list):
        return ", ".join(text for each in value if not isinstance(each, list) and (text := cell_text(each)))
    return ""


def _cell(row: Mapping[str, Any], column: str, file: str) -> str:
    found = find_column(column, row)
    if found is None:
        return Path(file).stem if column == FILE_COLUMN else ""
    return cell_text(row[found])
