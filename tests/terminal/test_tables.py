"""A table fits the terminal: columns where there is room, else lines of title and value."""

from __future__ import annotations

import io

from rich.console import Console

from mta_cli.terminal.tables import BoldCell, table

COLUMNS = ("user", "items", "task", "what it says")
ROWS = [("Anna Berg", 12, "film-stars", "a sentence of some length that can be wrapped"), ("bo", 3, "mail", "")]


def shown(width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table(COLUMNS, ROWS))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def test_a_wide_terminal_has_columns() -> None:
    lines = shown(100)
    assert lines[0].split() == ["user", "items", "task", "what", "it", "says"] and len(lines) == 4


def test_only_the_widest_column_is_wrapped() -> None:
    lines = shown(64)
    assert "Anna Berg" in lines[2] and "film-stars" in lines[2] and len(lines) > 4


def test_a_narrow_terminal_has_lines_of_title_and_value() -> None:
    lines = shown(40)
    assert lines[0] == "user          Anna Berg" and lines[2] == "task          film-stars"
    assert max(map(len, lines)) <= 40
    assert lines[lines.index("user          bo") :][:4] == [
        "user          bo",
        "items         3",
        "task          mail",
        "",
    ]


def test_a_bold_cell_stays_bold_when_stacked() -> None:
    stream = io.StringIO()
    made = table(COLUMNS, [("Anna Berg", 12, "film-stars", BoldCell("a sentence of some length"))])
    Console(file=stream, width=40, force_terminal=True, color_system="standard").print(made)
    assert "\x1b[1ma sentence" in stream.getvalue()
