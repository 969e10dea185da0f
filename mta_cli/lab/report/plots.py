"""Draws the charts of evaluations: a row for each method, panels by shots or anchors, and quality against bytes.

For print and colour-blind readers: the reference differs by marker, line style and weight, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.lab.report import style
from mta_cli.lab.report.point_labels import Point, write_labels
from mta_cli.lab.report.results import (
    Document,
    compared_with,
    method_cost,
    method_score,
    pareto_front,
    rank_methods,
    value_and_interval,
)
from mta_cli.lab.report.style import (
    ACCENT_COLOUR,
    BAND_COLOUR,
    GRID_COLOUR,
    INK_COLOUR,
    MUTED_COLOUR,
    PAPER_COLOUR,
    short_name,
)
from mta_cli.pipeline.evaluation.metric_names import LOWER_IS_BETTER, metric_title
from mta_cli.text.formatting import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANEL_COLUMNS = 4  # panels side by side
MAX_TITLE_LETTERS = 24  # letters of a panel's title on one line
SAME_SIZE_DECADES = 0.05  # sizes that differ by less than 10^0.05, or 12 %, are drawn side by side
MAX_SPREAD_DECADES = 0.34  # the most room for them on the logarithmic axis, where 1 is a factor of ten


def draw_intervals(document: Document, shown: Sequence[str]) -> Figure:
    """A panel for each metric of `shown`, with a row for each method, the best in the main metric at the top."""
    methods = rank_methods(document)
    figure = style.new_figure(style.WIDTH, 0.75 + 0.25 * len(methods), between=0.06)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, shown, strict=True):
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel(short_name(metric_title(metric)))
        panel.locator_params(axis="x", nbins=6)
        _dots(panel, document, methods, metric)
    panels[0].set_yticks(range(len(methods)), [short_name(method) for method in methods])
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    for method, label in zip(methods, panels[0].get_yticklabels(), strict=True):
        if method == document["reference"]:
            label.set(color=ACCENT_COLOUR, fontweight="bold")
    return figure


def _dots(panel: Axes, document: Document, methods: Sequence[str], metric: str) -> None:
    """Draw dots with whiskers, one row per method, and a vertical line at the reference's value."""
    for row, method in enumerate(methods):
        value, low, high = value_and_interval(document, method, metric)
        if math.isnan(value):
            continue
        chosen = method == document["reference"]
        colour = ACCENT_COLOUR if chosen else INK_COLOUR
        if chosen:
            panel.axhspan(row - 0.5, row + 0.5, color=BAND_COLOUR, linewidth=0, zorder=0)
            panel.axvline(value, color=ACCENT_COLOUR, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panel.hlines(row, low, high, color=colour, linewidth=2.2 if chosen else 1.4, zorder=2)
        panel.plot(
            value,
            row,
            "D" if chosen else "o",
            color=colour,
            markersize=6.5 if chosen else 5.5,
            markeredgecolor=PAPER_COLOUR,
            markeredgewidth=0.8,
            zorder=3,
        )


def draw_series(documents: Sequence[Document], by: str) -> Figure:
    """The main metric against `by`: a panel for each method that all documents have, beside the method with which it
    was compared.
    """
    last, compared = documents[-1], compared_with(documents[-1])
    reference: str = last["reference"]
    everywhere = set.intersection(*(set(document["methods"]) for document in documents))
    methods = [method for method in rank_methods(last) if method in everywhere - {reference}] or [reference]
    columns = min(MAX_PANEL_COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    figure = style.new_figure(style.WIDTH, 0.8 + 1.55 * rows)
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for panel, method in zip(panels, methods, strict=False):
        panel.set_title(_panel_title(method), fontweight="bold")
        _line(panel, documents, compared.get(method, reference), by, chosen=True)
        if method != reference:
            _line(panel, documents, method, by, chosen=False)
    for panel in panels[len(methods) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(methods) - columns) : len(methods)]:
        panel.tick_params(labelbottom=True)
    handles, names = panels[0].lines, (reference_title(last), "the method named above")
    figure.legend(handles, names[: len(handles)], loc="outside upper left", ncols=2, frameon=False)
    _set_amount_ticks(panels[0], [document[by] for document in documents])
    if last["metric"] in LOWER_IS_BETTER:
        panels[0].invert_yaxis()
    figure.supxlabel(by.replace("_", " "), fontsize=9, color=INK_COLOUR)
    figure.supylabel(short_name(metric_title(last["metric"])), fontsize=9, color=INK_COLOUR)
    return figure


def reference_title(document: Document) -> str:
    """The reference in the words of a legend."""
    several = len(set(compared_with(document).values())) > 1
    return short_name(document["reference"]) + " with the same label memory" * several


def _panel_title(method: str) -> str:
    """The method's name, with its memory on a second line where it is wider than a panel."""
    name, plus, memory = method.partition("+")
    lines = [name, plus + memory] if memory and len(method) > MAX_TITLE_LETTERS else [method]
    return "\n".join(short_name(line, MAX_TITLE_LETTERS) for line in lines)


def _line(panel: Axes, documents: Sequence[Document], method: str, by: str, *, chosen: bool) -> None:
    """Draw one method's values with the band of its intervals."""
    x = [float(document[by]) for document in documents]
    found = [value_and_interval(document, method, document["metric"]) for document in documents]
    values, low, high = ([row[part] for row in found] for part in range(3))
    colour = ACCENT_COLOUR if chosen else INK_COLOUR
    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    mark, dashes = ("D", (0, (4, 2))) if chosen else ("o", "-")
    panel.plot(x, values, mark, linestyle=dashes, color=colour, markersize=3.5, linewidth=1.4, zorder=3)


def _set_amount_ticks(panel: Axes, amounts: Sequence[float]) -> None:
    """A tick at each measured amount; a logarithmic axis where the amounts span a wide range."""
    if amounts[0] > 0 and amounts[-1] >= 4 * amounts[0]:
        panel.set_xscale("log")
    panel.set_xticks(amounts, [f"{amount:g}" for amount in amounts])
    panel.set_xticks([], minor=True)


def draw_bytes(document: Document) -> Figure:
    """The main metric against bytes, with whiskers, names and the Pareto front."""
    metric = document["metric"]
    kept = {method: method_cost(document, method, "bytes") for method in rank_methods(document)}
    sizes = {
        method: n for method, n in kept.items() if n is not None and method_score(document, method, metric) is not None
    }
    figure = style.new_figure(style.WIDTH, 5.2)
    axes = figure.subplots()
    zero = _size_axis(axes, list(sizes.values()))
    front, places = pareto_front(document, sizes), _spread_positions(sizes, zero)
    points = [_mark(axes, document, method, x, method in front) for method, x in places.items()]
    if front:
        x, y = (
            [places[method] for method in front],
            [value_and_interval(document, method, metric)[0] for method in front],
        )
        axes.step([*x, axes.get_xlim()[1]], [*y, y[-1]], where="post", color=GRID_COLOUR, linewidth=4, zorder=1)
    axes.set_xlabel("bytes kept for a user")
    axes.set_ylabel(short_name(metric_title(metric)))
    if metric in LOWER_IS_BETTER:
        axes.invert_yaxis()
    axes.margins(y=0.08)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    write_labels(axes, points, colour=INK_COLOUR, line=MUTED_COLOUR, strong=ACCENT_COLOUR)
    return figure


def _size_axis(axes: Axes, sizes: Sequence[float]) -> float:
    """Set a tick at each power of ten, and return the place for zero bytes, left of an axis break."""
    powers = [math.log10(found) for found in sizes if found > 0] or [0.0]
    first, last = math.floor(min(powers)), max(powers) + 0.5
    free = any(found <= 0 for found in sizes)
    zero, broken = first - 1.0, first - 0.2
    ticks = range(first, math.floor(last) + 1)
    names = [format_bytes(10.0**power) for power in ticks]
    axes.set_xticks([zero, *ticks] if free else ticks, ["0", *names] if free else names)
    axes.set_xlim(zero - 0.7 if free else broken, last)
    if free:
        axes.axvline(broken, color=MUTED_COLOUR, linewidth=0.8, linestyle=(0, (1, 2)))
        stroke = [(-1, -1), (1, 1)]
        axes.plot(
            broken,
            0,
            marker=stroke,
            markersize=9,
            color=MUTED_COLOUR,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
    return zero


def _spread_positions(sizes: Mapping[str, float], zero: float) -> dict[str, float]:
    """The position of each method on the size axis; methods of one size are spread a little."""
    at = {method: math.log10(found) if found > 0 else zero for method, found in sizes.items()}
    spread: dict[str, float] = {}
    for together in _clusters(at):
        room, widest = (1.0, 0.2) if at[together[0]] == zero else (MAX_SPREAD_DECADES, SAME_SIZE_DECADES * 1.6)
        step = min(widest, room / max(1, len(together) - 1))
        for index, method in enumerate(together):
            spread[method] = at[method] + (index - (len(together) - 1) / 2) * step
    return spread


def _clusters(at: Mapping[str, float]) -> Iterator[list[str]]:
    """The methods in groups of about one size."""
    group: list[str] = []
    for method in sorted(at, key=lambda method: at[method]):
        if group and at[method] - at[group[0]] > SAME_SIZE_DECADES:
            yield group
            group = []
        group.append(method)
    if group:
        yield group


def _mark(axes: Axes, document: Document, method: str, x: float, filled: bool) -> Point:
    value, low, high = value_and_interval(document, method, document["metric"])
    chosen = method == document["reference"]
    colour = ACCENT_COLOUR if chosen else INK_COLOUR if filled else MUTED_COLOUR
    axes.vlines(x, low, high, color=colour, linewidth=1.8 if chosen else 1.1, alpha=1 if chosen else 0.7, zorder=2)
    axes.plot(
        x,
        value,
        "D" if chosen else "o",
        markersize=7 if chosen else 6,
        color=colour,
        markeredgewidth=1.3,
        markerfacecolor=colour if filled else PAPER_COLOUR,
        zorder=3,
    )
    return Point(short_name(method), x, value, low, high, strong=chosen)
