"""Quality against bytes: better is higher, larger is to the right, nothing at all has its own place."""

from __future__ import annotations

import itertools

import pytest

from mta_cli.tui.widgets.charts.size_plot import SizePoint, draw_size_plot

METHODS = (
    SizePoint("mta", 77_000.0, 0.5, on_pareto_front=True, is_reference=True),
    SizePoint("recipe", 48.0, 0.4, on_pareto_front=True),
    SizePoint("base", 0.0, 0.1, on_pareto_front=True),
    SizePoint("oppu", 300_000.0, 0.3),
)


def where(rows: list[str], name: str) -> tuple[int, int]:
    found = [(row.index(name), y) for y, row in enumerate(rows) if name in row]
    assert len(found) == 1, (name, rows)
    return found[0]


def plotted(*methods: SizePoint, width: int = 80, height: int = 20, downward: bool = False) -> list[str]:
    return draw_size_plot(methods, "accuracy", width, height, downward=downward).plain()


def test_the_better_is_higher_and_the_larger_farther_right() -> None:
    rows = plotted(*METHODS)
    signs = sorted((x, y) for y, row in enumerate(rows) for x, char in enumerate(row) if char in "◆●○")
    (_, base), (_, recipe), (_, mta), (_, oppu) = signs
    assert [rows[y][x] for x, y in signs] == ["●", "●", "◆", "○"]
    assert mta < recipe < oppu < base


def test_where_less_is_better_the_least_is_on_top() -> None:
    places = {method.name: where(plotted(*METHODS, downward=True), method.name) for method in METHODS}
    assert places["base"][1] < places["oppu"][1] < places["recipe"][1] < places["mta"][1]


def test_signs_tell_the_reference_the_front_and_the_others() -> None:
    rows = plotted(*METHODS)
    assert [sum(row.count(sign) for row in rows) for sign in "◆●○"] == [1, 2, 1]


def test_a_line_joins_what_nothing_smaller_equals() -> None:
    rows = plotted(*METHODS)
    assert sum(row.count("┘") for row in rows) == 2
    below = plotted(*METHODS, downward=True)
    assert sum(row.count("┘") for row in below) == 0  # the front is told by the caller; here it falls


def test_the_axis_is_logarithmic_with_a_place_for_nothing() -> None:
    rows = plotted(*METHODS)
    axis = next(row for row in rows if "100 B" in row)
    assert axis.index("100 B") < axis.index("1 kB") < axis.index("10 kB") < axis.index("100 kB")
    steps = [axis.index(word) for word in ("100 B", "1 kB", "10 kB", "100 kB")]
    widths = {later - earlier for earlier, later in itertools.pairwise(steps)}
    assert max(widths) - min(widths) <= 1
    assert " 0 " in axis and "╱" in axis
    assert "╱" not in "".join(plotted(*(method for method in METHODS if method.bytes)))


def test_names_without_screen_become_letters_that_are_told_below() -> None:
    crowd = [SizePoint(f"method-{n}", 24.0 + n / 100, 0.4 + n / 10_000) for n in range(12)]
    rows = plotted(*crowd, METHODS[2], METHODS[0])
    legend = " ".join(rows[-2:])
    assert "a method-" in legend
    told = [method.name for method in crowd if any(method.name in row for row in rows)]
    assert len(told) >= 8


def test_methods_in_one_place_are_moved_apart() -> None:
    rows = plotted(SizePoint("one", 24.0, 0.4), SizePoint("two", 24.0, 0.4), METHODS[0])
    assert sum(row.count("○") for row in rows) == 2


@pytest.mark.parametrize(("width", "height"), [(0, 0), (10, 3), (24, 8), (24, 40), (200, 8), (300, 90)])
def test_every_size_can_be_drawn(width: int, height: int) -> None:
    assert len(plotted(*METHODS, width=width, height=height)) == height


def test_too_little_screen_is_said_and_nothing_is_drawn_for_nobody() -> None:
    assert "No room for a plot." in "\n".join(plotted(*METHODS, width=30, height=5))
    assert "".join(plotted(width=60, height=20)) == ""


@pytest.mark.parametrize("one", METHODS, ids=lambda one: one.name)
def test_one_method_alone_can_be_drawn(one: SizePoint) -> None:
    assert any(one.name in row for row in plotted(one))


def test_names_leave_the_numbers_of_the_axis_alone() -> None:
    for one in METHODS:
        assert [row[: row.index(".")].strip() for row in plotted(one) if row.strip().startswith("0.")]
        assert not any(char.isalpha() for row in plotted(one)[1:] for char in row[:5])


def test_a_hostile_name_is_one_clean_line() -> None:
    rows = plotted(SizePoint("[red]\x1b]0;x\x07\nend", 48.0, 0.4), METHODS[0])
    assert any("[red]]0;x end" in row for row in rows)
