"""Draws the charts of evaluations: a row for each method, panels by shots or anchors, and quality against bytes.

For print and colour-blind readers: the reference differs by marker, line style and weight, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.lab.report import style
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
    INK_COLOUR,
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


def draw_intervals(document: Document, shown: Sequence[str]) -> Figure:
    """A panel for each metric of `shown`, with a row for each method, the best in the main metric at the top."""
    methods = rank_methods(document)
    return _draw_rows(document, methods, shown, methods)


def _draw_rows(document: Document, methods: Sequence[str], shown: Sequence[str], filled: Container[str]) -> Figure:
    figure = style.new_figure(style.WIDTH, 0.75 + 0.25 * len(methods), between=0.06)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, shown, strict=True):
        panel.grid(axis="y", visible=False)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        panel.set_xlabel(short_name(metric_title(metric)))
        panel.locator_params(axis="x", nbins=6)
        _dots(panel, document, methods, metric, filled)
    panels[0].set_yticks(range(len(methods)), [short_name(method) for method in methods])
    panels[0].set_ylim(len(methods) - 0.4, -0.6)
    for method, label in zip(methods, panels[0].get_yticklabels(), strict=True):
        if method == document["reference"]:
            label.set(color=ACCENT_COLOUR, fontweight="bold")
    return figure


def _dots(panel: Axes, document: Document, methods: Sequence[str], metric: str, filled: Container[str]) -> None:
    """Draw dots with whiskers, one row per method, and a vertical line at the reference's value."""
    for row, method in enumerate(methods):
        value, low, high = value_and_interval(document, method, metric)
        if math.isnan(value):
            continue
        chosen, is_filled = method == document["reference"], method in filled
        colour = ACCENT_COLOUR if chosen else INK_COLOUR
        if chosen:
            panel.axhspan(row - 0.5, row + 0.5, color=BAND_COLOUR, linewidth=0, zorder=0)
            panel.axvline(value, color=ACCENT_COLOUR, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        panel.hlines(row, low, high, color=colour, linewidth=2.2 if chosen else 1.4, zorder=2)
        panel.plot(
            value,
            row,
            "D" if chosen else "o",
            color=colour if is_filled else PAPER_COLOUR,
            markersize=6.5 if chosen else 5.5,
            markeredgecolor=PAPER_COLOUR if is_filled else colour,
            markeredgewidth=0.8 if is_filled else 1.3,
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
    amounts = [document[by] for document in documents]
    if amounts[0] > 0 and amounts[-1] >= 4 * amounts[0]:
        panels[0].set_xscale("log")
    panels[0].set_xticks(amounts, [f"{amount:g}" for amount in amounts])
    panels[0].set_xticks([], minor=True)
    if last["metric"] in LOWER_IS_BETTER:
        panels[0].invert_yaxis()
    figure.supxlabel(by.replace("_", " "), fontsize=9, color=INK_COLOUR)
    figure.supylabel(short_name(metric_title(last["metric"])), fontsize=9, color=INK_COLOUR)
    return figure


def reference_title(document: Document) -> str:
    """The legend's text for the reference."""
    several = len(set(compared_with(document).values())) > 1
    return short_name(document["reference"]) + " with the same label memory" * several


def _panel_title(method: str) -> str:
    """The method's name, with its memory on a second line if the name is wider than a panel."""
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


def draw_bytes(document: Document) -> Figure:
    """The main metric with a row for each method, the method with the fewest bytes per user at the top. Methods off the
    Pareto front have hollow marks.
    """
    kept = {method: method_cost(document, method, "bytes") for method in rank_methods(document)}
    known = {method for method in kept if method_score(document, method, document["metric"]) is not None}
    sizes = {method: size for method, size in kept.items() if size is not None and method in known}
    methods = sorted(sizes, key=lambda method: sizes[method])
    figure = _draw_rows(document, methods, [document["metric"]], pareto_front(document, sizes))
    panel = figure.axes[0]
    for row, method in enumerate(methods):
        panel.text(1.02, row, format_bytes(sizes[method]), transform=panel.get_yaxis_transform(), va="center")
    return figure
