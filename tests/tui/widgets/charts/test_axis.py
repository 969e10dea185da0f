"""Axes: values fall on cells in order, and their numbers are round."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.tui.widgets.charts.axis import Scale, fit_scale, format_tick

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def test_the_ends_are_the_first_and_the_last_cell() -> None:
    scale = Scale(0.0, 2.0, 21)
    assert [scale.cell(value) for value in (0.0, 1.0, 2.0)] == [0, 10, 20]
    assert [scale.cell(value) for value in (-5.0, 9.0)] == [0, 20]


def test_an_axis_without_length_puts_everything_in_its_middle() -> None:
    assert Scale(1.0, 1.0, 11).cell(1.0) == 5


@settings(deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=9), st.integers(1, 200))
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


@settings(deadline=None)
@given(FINITE, st.floats(1e-3, 1e6), st.integers(1, 12))
def test_there_are_about_as_many_ticks_as_wanted(low: float, reach: float, wanted: int) -> None:
    scale = Scale(low, low + reach, 50)
    assert len(scale.ticks(wanted)) <= wanted + 1


def test_numbers_have_no_more_decimals_than_they_need() -> None:
    assert [format_tick(value) for value in (0.0, 0.5, 2.0, -0.05, 0.1234)] == ["0", "0.5", "2", "−0.05", "0.1234"]
