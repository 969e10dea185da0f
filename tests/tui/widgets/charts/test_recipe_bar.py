"""A recipe as one bar: stretches in proportion, letters for those who see no colours, and a legend."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from mta_cli.tui.widgets.charts.anchor_colours import ANCHOR_COLOURS, anchor_colour
from mta_cli.tui.widgets.charts.recipe_bar import RecipePart, proportional_widths, recipe_lines

PARTS = (RecipePart(1, "wystan", 0.25, ".25"), RecipePart(0, "osk", 0.25, ".25"), RecipePart(None, "task", 0.5, ".50"))


def test_stretches_are_as_long_as_weights_and_begin_with_their_letter() -> None:
    bar, legend = recipe_lines(PARTS, 40)
    assert bar.plain == "B" + "█" * 9 + "A" + "█" * 9 + "░" * 20
    assert legend.plain == "B wystan .25  A osk .25  ░ task .50"
    assert [str(span.style) for span in bar.spans] == [anchor_colour(1), anchor_colour(0), "dim"]
    assert f"bold {anchor_colour(1)}" in [str(span.style) for span in legend.spans]


def test_the_legend_takes_as_many_lines_as_it_needs() -> None:
    assert [line.plain for line in recipe_lines(PARTS, 20)][1:] == ["B wystan .25", "A osk .25", "░ task .50"]
    assert all(line.cell_len <= 8 for line in recipe_lines(PARTS, 8))


def test_without_weights_there_is_a_legend_alone() -> None:
    assert [line.plain for line in recipe_lines([RecipePart(2, "zoë", None, ".91")], 30)] == ["C zoë .91"]
    assert recipe_lines([], 30) == []


@pytest.mark.parametrize(
    ("values", "width", "cells"),
    [
        ([1.0, 1.0], 10, [5, 5]),
        ([0.999, 0.001], 10, [9, 1]),
        ([1.0, 1.0, 1.0], 10, [4, 3, 3]),
        ([1.0, 1.0, 1.0], 2, [1, 1, 0]),
        ([1.0], 0, [0]),
    ],
)
def test_no_weight_is_without_a_cell_while_there_are_enough(values: list[float], width: int, cells: list[int]) -> None:
    assert proportional_widths(values, width) == cells


def test_hostile_names_stay_text_of_one_line() -> None:
    shown = recipe_lines([RecipePart(0, "[b]\x1b[2J\nx", 1.0, "1"), RecipePart(1, "界" * 30, 1.0, "1")], 30)
    assert all("\n" not in line.plain and "\x1b" not in line.plain and cell_len(line.plain) <= 30 for line in shown)
    assert "[b][2J x" in shown[1].plain


def test_colours_begin_again_after_the_last() -> None:
    assert anchor_colour(len(ANCHOR_COLOURS)) == anchor_colour(0)
