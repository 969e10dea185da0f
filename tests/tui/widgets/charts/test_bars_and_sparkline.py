"""Bars and curves: lengths, ends, missing values, and labels that stay one line of text."""

from __future__ import annotations

import math

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult

from mta_cli.tui.widgets.charts.bars import Bar, BarChart, bar_lines, bar_text
from mta_cli.tui.widgets.charts.sparkline import LabelledSparkline
from tests.tui.driving import screen_text


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        (1.0, "████"),
        (0.5, "██"),
        (0.53125, "██▏"),
        (0.25, "█"),
        (0.22, "▉"),
        (0.0, ""),
        (2.0, "████"),
        (None, ""),
        (-0.5, "▒▒"),
        (-0.01, "▒"),
        (math.nan, ""),
        (math.inf, ""),
    ],
)
def test_a_bar_is_as_long_as_its_value(value: float | None, drawn: str) -> None:
    assert bar_text(value, 1.0, 4) == drawn


def test_without_screen_or_scale_there_is_no_bar() -> None:
    assert bar_text(1.0, 1.0, 0) == bar_text(1.0, 0.0, 4) == ""


def test_labels_bars_and_numbers_stand_in_columns() -> None:
    quarter, whole = (bar_lines([Bar("a", value, "")], 43).plain.count("█") for value in (0.25, 1.0))
    assert (quarter, whole) == (10, 40), "a bar stands for its value, not for its share of the best"
    lines = bar_lines([Bar("dave", 1.0, ".70"), Bar("erin the second", 0.5, "–")], 20).plain.split("\n")
    assert lines == ["dave     ███████ .70", "erin th… ███▌      –"]
    assert [cell_len(line) for line in lines] == [20, 20]


def test_a_tone_colours_bar_and_label_of_its_line_alone() -> None:
    shown = bar_lines([Bar("a", 1.0, "1", tone="good"), Bar("b", 1.0, "1")], 20, "blue", tones={"good": "green"})
    coloured = [shown.plain[span.start : span.end] for span in shown.spans if span.style == "green"]
    assert coloured == ["a ", "█" * 16 + " "]


def test_hostile_labels_stay_text_of_one_line() -> None:
    shown = bar_lines([Bar("[b]\x1b[2J\nx", 1.0, "[/]"), Bar("界" * 30, None, "1")], 30).plain
    assert shown.count("\n") == 1 and "[b][2J x" in shown and "\x1b" not in shown
    assert [cell_len(line) for line in shown.split("\n")] == [30, 30]


def test_no_bars_are_no_lines() -> None:
    assert bar_lines([], 30).plain == "" and bar_lines([Bar("a", 1.0, "1")], 0).plain.strip("\n ") in ("", "1")


class Shown(App[None]):
    def compose(self) -> ComposeResult:
        yield BarChart()
        yield LabelledSparkline("loss ")


async def test_widgets_are_as_high_as_what_they_show() -> None:
    app = Shown()
    async with app.run_test(size=(40, 10)) as pilot:
        bars, curve = app.query_one(BarChart), app.query_one(LabelledSparkline)
        assert (bars.size.height, curve.size.height) == (0, 0)
        bars.show_bars([Bar("a", 1.0, "1"), Bar("b", 0.5, ".5", strong=True)])
        curve.show_values([2.0, 1.0])
        await pilot.pause()
        assert (bars.size.height, curve.size.height) == (2, 1)
        assert bars.render_line(1).text.split() == ["b", bar_text(0.5, 1.0, 35), ".5"]
        assert screen_text(app).splitlines()[2] == f"loss 2.000 {'█' * 7}{'▁' * 6} 1.000 (−50.0 %)"
        curve.show_values([math.nan, 1.5])
        await pilot.pause()
        assert screen_text(app).splitlines()[2] == "loss 1.500"
        bars.show_bars([])
        curve.show_values([])
        await pilot.pause()
        assert (bars.size.height, curve.size.height) == (0, 0)
