"""The chart of quality against bytes stored for a user.

The size axis is logarithmic. Zero bytes have a place of their own, left of an axis break.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mta_cli.pipeline.report import style
from mta_cli.pipeline.report.labels import Point, write_labels
from mta_cli.pipeline.report.results import (
    LOWER_IS_BETTER,
    Document,
    method_cost,
    method_score,
    metric_title,
    pareto_front,
    rank_methods,
    value_and_interval,
)
from mta_cli.pipeline.report.style import ACCENT_COLOUR, GRID_COLOUR, INK_COLOUR, MUTED_COLOUR, PAPER_COLOUR, short_name
from mta_cli.pipeline.report.wording import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAME_SIZE_DECADES = 0.05  # decades; sizes nearer than this are drawn side by side
MAX_SPREAD_DECADES = 0.34  # decades over which those are spread at most


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
    """Set ticks at decades, and return the place for zero bytes, left of an axis break."""
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
