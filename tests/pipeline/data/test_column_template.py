"""Templates over a row's cells: full, partly empty, empty, and invalid templates."""

from __future__ import annotations

import pytest

from mta_cli.errors import UsageError
from mta_cli.pipeline.data.column_template import ColumnTemplate

FILM = "{film} ({about}). {review}"
LINES = "Film: {film}\nAbout: {about}\nReview: {review}"


def fill(template: str, **cells: str) -> str:
    return ColumnTemplate.parse(template).fill(lambda column: cells.get(column, ""))


@pytest.mark.parametrize(
    ("template", "cells", "text"),
    [
        (FILM, {"film": "Salt", "about": "sea", "review": "Fine."}, "Salt (sea). Fine."),
        (FILM, {"film": "Salt", "review": "Fine."}, "Salt. Fine."),
        (FILM, {"film": "Salt", "about": "sea"}, "Salt (sea)"),
        (FILM, {"film": "Salt"}, "Salt"),
        (FILM, {"about": "sea", "review": "Fine."}, "(sea). Fine."),
        (FILM, {"review": "Fine."}, "Fine."),
        (FILM, {}, ""),
        (FILM, {"film": "Salt", "about": "  ", "review": " Fine. "}, "Salt. Fine."),
        (LINES, {"film": "Salt", "review": "Fine."}, "Film: Salt\nReview: Fine."),
        (LINES, {"about": "sea"}, "About: sea"),
        ("{film} ({director}, {year})", {"film": "Salt", "year": "1987"}, "Salt (1987)"),
        ("{film} ({director}, {year})", {"film": "Salt", "director": "Oh"}, "Salt (Oh)"),
        ("{film} ({director}, {year})", {"film": "Salt"}, "Salt"),
        ("{film} [{year}] (film)", {"film": "Salt", "year": "1987"}, "Salt [1987] (film)"),
        ("I give {stars} stars.", {"stars": "5"}, "I give 5 stars."),
        ("I give {stars} stars.", {}, ""),
        ("{a}) {b}", {"a": "x", "b": "y"}, "x) y"),
        ("({a} {b}", {"a": "x", "b": "y"}, "(x y"),
        ("{film}", {"film": "{review}", "review": "no"}, "{review}"),
        ("film name", {"film name": "Salt"}, "Salt"),
        ("{ film name }!", {"film name": "Salt"}, "Salt!"),
    ],
)
def test_an_empty_cell_leaves_no_broken_text(template: str, cells: dict[str, str], text: str) -> None:
    assert fill(template, **cells) == text


def test_columns_are_named_in_their_order() -> None:
    assert ColumnTemplate.parse("{b} ({a}, [{c}]) {b}").columns == ("b", "a", "c", "b")
    assert ColumnTemplate.parse("stars").columns == ("stars",)


@pytest.mark.parametrize("text", ["{}", "{ } x", "{film", "film}", "{a}{", "{{a}}"])
def test_braces_without_a_column_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a template"):
        ColumnTemplate.parse(text)
