"""Braille dots: each point lights its own, and full cells are told from thin ones."""

from __future__ import annotations

import numpy as np
import pytest

from mta_cli.tui.widgets.charts.braille import braille_grid


def at(*points: tuple[int, int], width: int = 2, height: int = 2):  # type: ignore[no-untyped-def]
    columns, rows = np.array(points, int).reshape(-1, 2).T
    return braille_grid(columns, rows, width, height)


@pytest.mark.parametrize(
    ("column", "row", "char"),
    [(0, 0, "⠁"), (0, 1, "⠂"), (0, 2, "⠄"), (0, 3, "⡀"), (1, 0, "⠈"), (1, 1, "⠐"), (1, 2, "⠠"), (1, 3, "⢀")],
)
def test_every_dot_of_a_cell_has_its_place(column: int, row: int, char: str) -> None:
    assert at((column, row)).char(0, 0) == char
    assert at((column + 2, row + 4)).char(1, 1) == char


def test_dots_of_a_cell_come_together_and_are_counted() -> None:
    drawn = at((0, 0), (1, 3), (1, 3), (3, 0))
    assert drawn.char(0, 0) == "⢁"
    assert drawn.counts.tolist() == [[3, 1], [0, 0]]
    full = at(*((column, row) for column in range(2) for row in range(4)))
    assert full.char(0, 0) == "⣿"


def test_cells_are_brighter_the_more_points_they_hold() -> None:
    drawn = at(*[(0, 0)] * 1000, *[(2, 0)] * 30, (0, 4))
    assert drawn.density_levels().tolist() == [[3, 1], [0, -1]]
    assert at((0, 0)).density_levels()[0, 0] > 0


def test_no_points_make_an_empty_plot() -> None:
    drawn = at()
    assert drawn.counts.sum() == 0
    assert set(drawn.density_levels().ravel().tolist()) == {-1}
