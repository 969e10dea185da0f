"""Which columns make a record."""

from __future__ import annotations

from typing import Any

import pytest

from mta_cli.errors import UsageError
from mta_cli.pipeline.data.column_mapping import ColumnMapping, cell_text

COLUMNS = ("Person", "film", "stars", "time")
FILMS = ColumnMapping(user="person", input="{film} by {file}", output="stars")


def test_mapped_parts_are_text_and_the_others_stay_as_they_are() -> None:
    row: dict[str, Any] = {"Person": "ann", "film": "Salt", "stars": 4, "time": "2026", "task": "homework"}
    assert FILMS.read(row, "films.csv") == {
        "user": "ann",
        "input": "Salt by films",
        "output": "4",
        "time": "2026",
    }
    assert ColumnMapping().read({"user": "ann", "Output": 4, "task": "free"}, "f") == {
        "user": "ann",
        "output": 4,
        "task": "free",
    }


def test_a_column_called_file_comes_before_the_files_name() -> None:
    assert ColumnMapping(user="{file}").read({"file": "x"}, "ann.csv")["user"] == "x"
    assert ColumnMapping(user="{file}").read({}, "ann.b.csv")["user"] == "ann.b"


def test_an_empty_time_or_id_is_not_read() -> None:
    assert ColumnMapping(time="", id="").read({"time": "20:15", "id": "1"}, "f") == {}


def test_a_column_that_names_the_user_is_no_id() -> None:
    assert ColumnMapping(user="id", input="q", output="a").read({"ID": "p1", "q": "i", "a": "o"}, "f") == {
        "user": "p1",
        "input": "i",
        "output": "o",
    }
    assert ColumnMapping(user="who").read({"ID": "p1", "who": "ann"}, "f") == {"user": "ann", "id": "p1"}


def test_what_is_missing() -> None:
    assert ColumnMapping().missing_parts(COLUMNS) == ["user", "input", "output"]
    assert ColumnMapping(input="film").missing_parts(("USER", "film", "output")) == []
    assert ColumnMapping(input="film").missing_parts(COLUMNS, one_user=True) == ["output"]
    assert FILMS.missing_parts(COLUMNS) == [] and FILMS.unknown_columns(COLUMNS) == []
    assert ColumnMapping(input="{flim} {stars}", time="when").unknown_columns(COLUMNS) == ["flim", "when"]


def test_what_is_given_comes_before_a_preset() -> None:
    merged = ColumnMapping(input="film", id="").merged_over(FILMS)
    assert merged == ColumnMapping(user="person", input="film", output="stars", id="")


def test_the_flags_of_a_mapping() -> None:
    assert ColumnMapping(user="who", time="").flags() == {"user": "who", "time": ""}
    assert ColumnMapping().is_default and not ColumnMapping(time="").is_default


def test_a_bad_template_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is not a template"):
        _ = ColumnMapping(input="{").templates


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("a", "a"),
        (3, "3"),
        (2.5, "2.5"),
        (float("nan"), ""),
        (True, "true"),
        (["a", 2, None, ["b"], {}], "a, 2"),
        ({"a": 1}, ""),
    ],
)
def test_cells_as_text(value: object, text: str) -> None:
    assert cell_text(value) == text
