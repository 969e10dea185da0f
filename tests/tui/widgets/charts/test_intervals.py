"""Interval bars: all on one axis, the reference marked, notes where there is room."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult

from mta_cli.tui.widgets.charts.intervals import (
    IntervalPlot,
    IntervalRow,
    Scale,
    draw_intervals,
    fit_scale,
    format_tick,
)

SPANS = (
    IntervalRow("mta", 0.5, 0.4, 0.6, "0.500 [0.400, 0.600]", "strong"),
    IntervalRow("base", 0.2, 0.1, 0.3, "0.200 [0.100, 0.300]"),
)


def place(row: str, sign: str) -> int:
    assert sign in row, row
    return row.index(sign)


def test_ends_and_values_stand_in_order_on_one_axis() -> None:
    first, second = draw_intervals(SPANS, None, 50).plain()[:2]
    for row in (first, second):
        assert place(row, "├") < place(row, "●") < place(row, "┤")
    assert place(second, "┤") < place(first, "├")


def test_the_reference_is_a_line_through_every_row() -> None:
    rows = draw_intervals(SPANS, 0.5, 50).plain()
    at = place(rows[0], "●")
    assert rows[1][at] == "┊"
    assert rows[2][at] == "╂"


def test_a_bar_that_crosses_the_line_shows_it() -> None:
    rows = draw_intervals((IntervalRow("a", 0.5, 0.2, 0.9), IntervalRow("b", 0.3, 0.2, 0.4)), 0.7, 60).plain()
    assert "┼" in rows[0] and "┊" not in rows[0]
    assert "┊" in rows[1] and "┼" not in rows[1]


def test_notes_stand_at_the_right_where_there_is_room() -> None:
    assert draw_intervals(SPANS, None, 80).plain()[0].endswith("0.500 [0.400, 0.600]")
    assert not any("[" in row for row in draw_intervals(SPANS, None, 50).plain())


def test_the_axis_has_round_numbers() -> None:
    assert draw_intervals(SPANS, None, 60).plain()[-1].split() == ["0.2", "0.4", "0.6"]


@pytest.mark.parametrize(("low", "high", "signs"), [(None, 0.6, "●┤"), (0.4, None, "├●"), (None, None, "●")])
def test_an_end_that_is_not_known_is_not_drawn(low: float | None, high: float | None, signs: str) -> None:
    row = draw_intervals((IntervalRow("m", 0.5, low, high), SPANS[1]), None, 50).plain()[0]
    assert "".join(char for char in row if char in "├●┤") == signs


def test_a_method_without_a_value_has_its_name_alone() -> None:
    row = draw_intervals((IntervalRow("lost", None, None, None, "–"), SPANS[0]), 0.3, 80).plain()[0]
    assert row.startswith("lost") and row.endswith("–")
    assert not any(char in row for char in "├●┤─")


def test_intervals_narrower_than_a_cell_are_their_value() -> None:
    row = draw_intervals(
        (IntervalRow("sure", 0.5, 0.4999, 0.5001), IntervalRow("far", 9.0, 8.0, 10.0)), None, 50
    ).plain()[0]
    assert "●" in row and "├" not in row and "┤" not in row


def test_tones_are_the_styles_of_their_rows() -> None:
    sheet = draw_intervals(SPANS, None, 50)
    rows = sheet.plain()
    assert sheet.style_at(0, 0) == sheet.style_at(place(rows[0], "●"), 0) == "strong"
    assert sheet.style_at(place(rows[1], "●"), 1) == "plain"


@pytest.mark.parametrize("width", [0, 1, 7, 12, 20, 40, 79, 300])
def test_every_width_can_be_drawn(width: int) -> None:
    assert len(draw_intervals(SPANS, 0.5, width).plain()) == 4


def test_long_and_hostile_names_are_one_clean_line_each() -> None:
    rows = draw_intervals((IntervalRow("[b]\x1b[2Jxy\nz" + "n" * 60, 0.5, 0.4, 0.6), SPANS[0]), None, 60).plain()
    assert rows[0].startswith("[b][2Jxy znnnnnnn… ") and len(rows) == 4


def test_the_widget_is_as_high_as_its_rows_and_says_all() -> None:
    class Alone(App[None]):
        def compose(self) -> ComposeResult:
            yield IntervalPlot()

    async def drive() -> tuple[int, int, str]:
        app = Alone()
        async with app.run_test(size=(80, 24)) as pilot:
            bars = app.query_one(IntervalPlot)
            empty = bars.size.height
            bars.show_intervals(SPANS, 0.5)
            await pilot.pause()
            return empty, bars.size.height, bars.render().plain

    empty, high, text = asyncio.run(drive())
    assert (empty, high) == (0, 4)
    assert text.count("●") == 2


def test_the_ends_are_the_first_and_the_last_cell() -> None:
    scale = Scale(0.0, 2.0, 21)
    assert [scale.cell(value) for value in (0.0, 1.0, 2.0)] == [0, 10, 20]
    assert [scale.cell(value) for value in (-5.0, 9.0)] == [0, 20]


def test_an_axis_without_length_puts_everything_in_its_middle() -> None:
    assert Scale(1.0, 1.0, 11).cell(1.0) == 5


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=9), st.integers(1, 200))
@example([-1e6, -999999.9999999999], 1)
def test_an_axis_around_values_holds_them_in_order(values: list[float], cells: int) -> None:
    scale = fit_scale(values, cells)
    found = [scale.cell(value) for value in sorted(values)]
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < cells
    assert scale.low < min(values) <= max(values) < scale.high


def test_what_is_not_a_number_does_not_stretch_an_axis() -> None:
    assert fit_scale([1.0, math.nan, 2.0, math.inf], 10) == fit_scale([1.0, 2.0], 10)
    assert fit_scale([], 10).low < fit_scale([], 10).high


@pytest.mark.parametrize(
    ("low", "high", "wanted", "ticks"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.11, 0.52, 4, [0.2, 0.4]),
        (-0.06, 0.05, 3, [-0.05, 0.0, 0.05]),
        (-2.71, -1.63, 3, [-2.5, -2.0]),
        (0.0, 0.0, 3, [0.0]),
        (100.0, 350.0, 3, [100.0, 200.0, 300.0]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(low: float, high: float, wanted: int, ticks: list[float]) -> None:
    assert Scale(low, high, 40).ticks(wanted) == ticks


def test_numbers_have_no_more_decimals_than_they_need() -> None:
    assert [format_tick(value) for value in (0.0, 0.5, 2.0, -0.05, 0.1234)] == ["0", "0.5", "2", "−0.05", "0.1234"]
