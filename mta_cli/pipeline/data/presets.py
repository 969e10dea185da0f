"""Presets for exports of rating sites: their columns, and a task for their scale."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mta_cli.engine.text.tasks import Task
from mta_cli.errors import BadInput, Flag, NotFound
from mta_cli.pipeline.data.column_mapping import ColumnMapping, cell_text, find_column
from mta_cli.pipeline.data.formats.delimited import read_rows
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, format_value
from mta_cli.pipeline.data.formats.reading import open_rewindable
from mta_cli.pipeline.data.formats.rows import RawRow

NO_RATING = "rows without a rating"
_BREAK = re.compile(r"<br\s*/?>|</p>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,500}>")


@dataclass(frozen=True)
class Details:
    """A second file in the same folder, joined to the ratings by the columns `keys`; required if `needed`."""

    file: str
    keys: tuple[str, ...]
    needed: bool


@dataclass(frozen=True)
class Preset:
    """The export of a site: the name of its file, its required columns (`needed`), and the mapping to records.

    `stand_ins` maps a column to the column that replaces it if it is empty.
    """

    name: str
    site: str
    file: str
    rating: str
    needed: tuple[str, ...]
    columns: ColumnMapping
    task: Task
    details: Details | None = None
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_one_user(self) -> bool:
        """Whether an export has the ratings of a single, unnamed user."""
        return self.columns.user is None

    def find_file(self, path: Path) -> Path:
        """The file with the ratings: `path`, or in a folder its `self.file`. Raises NotFound if the folder lacks it."""
        return _require(path / self.file, self) if path.is_dir() else path

    def read_details(self, path: Path, findings: ParseFindings) -> dict[tuple[str, ...], dict[str, str]]:
        """The rows of the second file by its keys; empty if there is no such file or it is `path` itself.

        Raises NotFound if it is required but missing.
        """
        if self.details is None or path.name == self.details.file:
            return {}
        beside, keys = path.parent / self.details.file, self.details.keys
        if not self.details.needed and not beside.is_file():
            return {}
        with open_rewindable(_require(beside, self)) as stream:
            rows = (self._clean_row(row) for _, row in read_rows(stream, beside.name, findings))
            return {_key(row, keys): row for row in rows}

    def read(
        self, rows: Iterable[RawRow], details: Mapping[tuple[str, ...], Mapping[str, str]], findings: ParseFindings
    ) -> Iterator[RawRow]:
        """The rows with a rating, joined with `details`; rows without one (or with 0) are counted as left out."""
        keys = self.details.keys if self.details is not None else ()
        for place, raw in rows:
            row = self._clean_row(raw)
            rating = row.get(self.rating, "").removesuffix(".0")
            if rating in ("", "0"):
                findings.skip_counts[NO_RATING] += 1
                continue
            row = {**row, **details.get(_key(row, keys), {}), **{name: text for name, text in row.items() if text}}
            stand_ins = {name: row.get(other, "") for name, other in self.stand_ins.items() if not row.get(name)}
            yield place, {**row, **stand_ins, self.rating: rating}

    def require_columns(self, columns: Sequence[str], file: str) -> None:
        """Raises `BadInput` unless the file has the columns of this export."""
        missing = [name for name in self.needed if find_column(name, columns) is None]
        if missing:
            there = ", ".join(format_value(name) for name in columns[:12])
            raise BadInput(
                f"{file} is not an export of {self.site}: it lacks the columns {', '.join(missing)} and has {there}",
                hint=(
                    "docs/formats.md says where to find the export; for any other table leave out ",
                    Flag("preset"),
                ),
            )

    def _clean_row(self, row: Mapping[str, Any]) -> dict[str, str]:
        """The cells as text without HTML, each under its column's name as the preset writes it."""
        return {self._names.get(name.casefold(), name): _plain_text(cell_text(value)) for name, value in row.items()}

    @cached_property
    def _names(self) -> dict[str, str]:
        """The columns that are read, by their names in folded case."""
        mapped = (name for template in self.columns.templates.values() for name in template.columns)
        keys = self.details.keys if self.details is not None else ()
        return {name.casefold(): name for name in (*mapped, *keys, *self.stand_ins.values())}


def _require(path: Path, preset: Preset) -> Path:
    if path.is_file():
        return path
    raise NotFound(
        f"There is no {path.name} in {format_value(str(path.parent), 200)}",
        hint=f"docs/formats.md says which files an export of {preset.site} has",
    )


def _key(row: Mapping[str, str], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(row.get(name, "") for name in keys)


def _plain_text(text: str) -> str:
    """A review without its HTML."""
    if "<" not in text and "&" not in text:
        return text.strip()
    return html.unescape(_TAG.sub("", _BREAK.sub("\n", text))).strip()


def _rating_task(name: str, site: str, thing: str, scale: Sequence[str]) -> Task:
    return Task(
        name=name,
        kind="score",
        description=f"{site}: the rating from {scale[0]} to {scale[-1]} that somebody gives a {thing}",
        prompt=f"{{input}}\nMy rating from {scale[0]} to {scale[-1]}:",
        item="{input}\nRating: {output}",
        history_header=f"{thing.capitalize()}s I rated:",
        labels=tuple(scale),
        metric="mae",
        query_tokens=128,
        item_tokens=48,
        answer_tokens=6,
    )


_HALVES = tuple(f"{half / 2:g}" for half in range(1, 11))
_TEN = tuple(str(score) for score in range(1, 11))
_FIVE = tuple(str(score) for score in range(1, 6))

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "letterboxd",
            "Letterboxd",
            "ratings.csv",
            "Rating",
            ("Name", "Year", "Rating"),
            ColumnMapping(None, "{Name} ({Year}). {Review}", "Rating", "Date", ""),
            _rating_task("letterboxd", "Letterboxd", "film", _HALVES),
            Details("reviews.csv", ("Name", "Year"), needed=False),
        ),
        Preset(
            "imdb",
            "IMDb",
            "ratings.csv",
            "Your Rating",
            ("Const", "Your Rating", "Title"),
            ColumnMapping(None, "{Title} ({Year}). {Genres}. {Directors}", "Your Rating", "Date Rated", ""),
            _rating_task("imdb", "IMDb", "title", _TEN),
        ),
        Preset(
            "goodreads",
            "Goodreads",
            "goodreads_library_export.csv",
            "My Rating",
            ("Title", "Author", "My Rating"),
            ColumnMapping(None, "{Title} by {Author}. {My Review}", "My Rating", "Date Read", ""),
            _rating_task("goodreads", "Goodreads", "book", _FIVE),
            stand_ins={"Date Read": "Date Added"},
        ),
        Preset(
            "movielens",
            "MovieLens",
            "ratings.csv",
            "rating",
            ("userId", "movieId", "rating"),
            ColumnMapping("userId", "{title}. {genres}", "rating", "timestamp", ""),
            _rating_task("movielens", "MovieLens", "film", _HALVES),
            Details("movies.csv", ("movieId",), needed=True),
        ),
    )
}
