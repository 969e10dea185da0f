"""Charts with a row for each method, and charts of small panels by shots or anchors.

For print and colour-blind readers: the reference differs by marker, line style and weight, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.pipeline.report import style
from mta_cli.pipeline.report.results import LOWER_IS_BETTER, Document, metric_title, rank_methods, value_and_interval
from mta_cli.pipeline.report.style import ACCENT_COLOUR, BAND_COLOUR, INK_COLOUR, PAPER_COLOUR, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PANEL_COLUMNS = 4  # side by side


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
    """The main metric against `by`: a panel for each method, with the reference in every panel."""
    last = documents[-1]
    methods = [method for method in rank_methods(last) if method != last["reference"]] or [last["reference"]]
    columns = min(MAX_PANEL_COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    figure = style.new_figure(style.WIDTH, 0.8 + 1.55 * rows)
    grid: Any = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for panel, method in zip(panels, methods, strict=False):
        panel.set_title(short_name(method), fontweight="bold")
        _line(panel, documents, last["reference"], by, chosen=True)
        if method != last["reference"]:
            _line(panel, documents, method, by, chosen=False)
    for panel in panels[len(methods) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(methods) - columns) : len(methods)]:
        panel.tick_params(labelbottom=True)
    handles, names = panels[0].lines, (short_name(last["reference"]), "the method named above")
    figure.legend(handles, names[: len(handles)], loc="outside upper left", ncols=2, frameon=False)
    _set_amount_ticks(panels[0], [document[by] for document in documents])
    if last["metric"] in LOWER_IS_BETTER:
        panels[0].invert_yaxis()
    figure.supxlabel(by, fontsize=9, color=INK_COLOUR)
    figure.supylabel(short_name(metric_title(last["metric"])), fontsize=9, color=INK_COLOUR)
    return figure


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
