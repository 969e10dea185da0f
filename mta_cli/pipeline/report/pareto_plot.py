"""The chart of quality against bytes kept for a user. Knows documents and figures, no files.

Sizes are logarithmic; nothing at all has a place of its own, left of a break, since no logarithm reaches it.
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
    cost,
    ranked,
    score,
    smallest_best,
    titled,
    whisker,
)
from mta_cli.pipeline.report.style import ACCENT, GRID, INK, PAPER, QUIET, short
from mta_cli.pipeline.report.wording import size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAME = 0.05  # decades; sizes nearer than this are drawn side by side
ROOM = 0.34  # decades over which those are spread at most


def draw_bytes(document: Document) -> Figure:
    """The main metric against bytes, with whiskers, names and the line of the methods that nothing smaller equals."""
    metric = document["metric"]
    kept = {method: cost(document, method, "bytes") for method in ranked(document)}
    sizes = {method: n for method, n in kept.items() if n is not None and score(document, method, metric) is not None}
    figure = style.figure(style.WIDTH, 5.2)
    axes = figure.subplots()
    zero = _size_axis(axes, list(sizes.values()))
    front, places = smallest_best(document, sizes), _places(sizes, zero)
    points = [_mark(axes, document, method, x, method in front) for method, x in places.items()]
    if front:
        x, y = [places[method] for method in front], [whisker(document, method, metric)[0] for method in front]
        axes.step([*x, axes.get_xlim()[1]], [*y, y[-1]], where="post", color=GRID, linewidth=4, zorder=1)
    axes.set_xlabel("bytes kept for a user")
    axes.set_ylabel(short(titled(metric)))
    if metric in LOWER_IS_BETTER:
        axes.invert_yaxis()
    axes.margins(y=0.08)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    write_labels(axes, points, colour=INK, line=QUIET, strong=ACCENT)
    return figure


def _size_axis(axes: Axes, sizes: Sequence[float]) -> float:
    """Decades as ticks, and a place for nothing at all left of a break; returns where that is."""
    powers = [math.log10(found) for found in sizes if found > 0] or [0.0]
    first, last = math.floor(min(powers)), max(powers) + 0.5
    free = any(found <= 0 for found in sizes)
    zero, broken = first - 1.0, first - 0.2
    ticks = range(first, math.floor(last) + 1)
    names = [size(10.0**power) for power in ticks]
    axes.set_xticks([zero, *ticks] if free else ticks, ["0", *names] if free else names)
    axes.set_xlim(zero - 0.7 if free else broken, last)
    if free:
        axes.axvline(broken, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)))
        stroke = [(-1, -1), (1, 1)]
        axes.plot(
            broken, 0, marker=stroke, markersize=9, color=QUIET, clip_on=False, transform=axes.get_xaxis_transform()
        )
    return zero


def _places(sizes: Mapping[str, float], zero: float) -> dict[str, float]:
    """Where each method stands on the axis of sizes; those of one size are spread a little."""
    at = {method: math.log10(found) if found > 0 else zero for method, found in sizes.items()}
    spread: dict[str, float] = {}
    for together in _clusters(at):
        room, widest = (1.0, 0.2) if at[together[0]] == zero else (ROOM, SAME * 1.6)
        step = min(widest, room / max(1, len(together) - 1))
        for index, method in enumerate(together):
            spread[method] = at[method] + (index - (len(together) - 1) / 2) * step
    return spread


def _clusters(at: Mapping[str, float]) -> Iterator[list[str]]:
    """The methods in groups of about one size."""
    group: list[str] = []
    for method in sorted(at, key=lambda method: at[method]):
        if group and at[method] - at[group[0]] > SAME:
            yield group
            group = []
        group.append(method)
    if group:
        yield group


def _mark(axes: Axes, document: Document, method: str, x: float, filled: bool) -> Point:
    value, low, high = whisker(document, method, document["metric"])
    chosen = method == document["reference"]
    colour = ACCENT if chosen else INK if filled else QUIET
    axes.vlines(x, low, high, color=colour, linewidth=1.8 if chosen else 1.1, alpha=1 if chosen else 0.7, zorder=2)
    axes.plot(
        x,
        value,
        "D" if chosen else "o",
        markersize=7 if chosen else 6,
        color=colour,
        markeredgewidth=1.3,
        markerfacecolor=colour if filled else PAPER,
        zorder=3,
    )
    return Point(short(method), x, value, low, high, strong=chosen)
