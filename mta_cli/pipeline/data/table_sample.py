"""Reads a file's columns and first rows, to check a column mapping before the whole file is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import BadInput, Command
from mta_cli.pipeline.data.column_mapping import ColumnMapping, find_column
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.detect import is_certainly_importable, read_sample, require_format
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, format_value
from mta_cli.pipeline.data.formats.reading import open_rewindable
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.guess_columns import ColumnGuess, guess_columns
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.text.formatting import join_some

SAMPLE_ROWS, SAMPLE_CHARACTERS = 200, 1_000_000
"""The most rows, and about the most characters, of a sample."""
_LISTED_COLUMNS = 12
IMPORT_COMMAND = "data import"


@dataclass(frozen=True)
class TableSample:
    """The first rows of a file, and the columns that occur in them."""

    file: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names in the order of the file."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def guess(self, given: ColumnMapping | None = None) -> ColumnGuess:
        """Guess the roles of the columns that the mapping `given` does not use."""
        templates = given.templates if given is not None else {}
        found = {part: [find_column(name, self.columns) for name in one.columns] for part, one in templates.items()}
        known = {part: columns for part, columns in found.items() if None not in columns}
        taken = {column for columns in known.values() for column in columns}
        rows = [{name: cell for name, cell in row.items() if name not in taken} for row in self.rows]
        return guess_columns(rows, given=known)

    def missing_parts(self, source: ImportSource) -> list[str]:
        """The required parts of a record for which neither the source's mapping nor a column name fits."""
        return source.mapping.missing_parts(self.columns, one_user=source.user is not None)

    def require_columns(self, source: ImportSource, command: str = IMPORT_COMMAND) -> None:
        """Raises `BadInput`, with the columns and an example command, if the mapping does not fit the file.

        Columns that only a preset maps may be absent.
        """
        unknown, missing = source.columns.unknown_columns(self.columns), self.missing_parts(source)
        if not unknown and not missing:
            return
        there = join_some([format_value(name) for name in self.columns], _LISTED_COLUMNS)
        wanted = ", ".join(format_value(name) for name in unknown) if unknown else ", ".join(missing)
        raise BadInput(
            f"{self.file} has no column {wanted}; its columns are {there}",
            hint=("for example: ", self.example_command(source, command)) if source.preset is None else None,
        )

    def example_command(self, source: ImportSource, command: str = IMPORT_COMMAND) -> Command:
        """An example import command with guesses for the missing columns; words in capitals are placeholders."""
        guess = self.guess(source.columns).columns
        flags = {}
        if source.user is not None or (guess.user is None and source.columns.user is None):
            flags["me"] = source.user or "NAME"
        for part in ("user", "input", "output", "time"):
            needless = part == "user" and "me" in flags
            given = getattr(source.columns, part)
            is_known = given and not ColumnMapping(input=given).unknown_columns(self.columns)
            known = given if is_known else getattr(guess, part)
            if not needless and (known or part != "time"):
                flags[part] = known or "COLUMN"
        file = "-" if str(source.path) == "/dev/stdin" else str(source.path)
        return Command(command, file, **flags, task=source.task or None)


def checked_rows(rows: Iterable[RawRow], file: str, check: Callable[[TableSample], None]) -> Iterator[RawRow]:
    """The same rows; `check` is called with a sample of the first ones before any row is returned, and may raise."""
    waiting = iter(rows)
    first = list(_take_sample(waiting))
    if first:
        check(TableSample(file, tuple(row for _, row in first)))
    return itertools.chain(first, waiting)


def detect_format(source: ImportSource) -> str | None:
    """The format of the source's first file in a known format; None if there is none.

    Raises the errors of an import.
    """
    if source.is_repository:
        return "git"
    for path in source.files():
        with open_rewindable(path) as stream:
            if not source.passes_over_unknown or is_certainly_importable(stream, path.name):
                return require_format(read_sample(stream, path.name), source.format)
    return None


def read_table_sample(source: ImportSource) -> TableSample | None:
    """The first rows of the source's first file in a known format; None if that is not a table.

    Raises the errors of an import.
    """
    if source.is_repository:
        return None
    for path in source.files():
        with open_rewindable(path) as stream:
            if source.passes_over_unknown and not is_certainly_importable(stream, path.name):
                continue
            form = require_format(read_sample(stream, path.name), source.format)
            if FORMATS[form].kind != "table":
                return None
            rows = FORMATS[form].load().read_rows(stream, path.name, ParseFindings())
            return TableSample(path.name, tuple(row for _, row in _take_sample(iter(rows))))
    return None


def _take_sample(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    size = 0
    for number, (place, row) in enumerate(rows, 1):
        yield place, row
        size += sum(len(cell) for cell in row.values() if isinstance(cell, str))
        if number == SAMPLE_ROWS or size >= SAMPLE_CHARACTERS:
            return
