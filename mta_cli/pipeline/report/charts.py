"""The charts of an evaluation from its result documents, as SVG or PNG. Knows neither the store nor the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.pipeline.report import pareto_plot, plots, style
from mta_cli.pipeline.report.files import write
from mta_cli.pipeline.report.results import LIKELIHOOD, Document, metric_name, metrics, same_settings
from mta_cli.pipeline.report.style import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn: `name` is a safe file name without ending, `caption` says how to read it."""

    name: str
    caption: str
    draw: Callable[[], Figure]


def svg(chart: Chart) -> str:
    """The chart as one SVG element: text as text, no script, nothing from outside; the same bytes every time.

    Colours are `var(--ink, …)` and the like, so that a page can set them.
    """
    with style.style():
        return style.svg(chart.draw(), chart.name, chart.caption)


def png(chart: Chart) -> bytes:
    """The chart as a PNG at 200 dots an inch; the same bytes every time."""
    with style.style():
        return style.png(chart.draw())


def write_png(chart: Chart, folder: Path) -> Path:
    """Write `<name>.png` into `folder`, whole or not at all; returns its path. Raises as `reporting.writing.write`."""
    return write(folder / f"{chart.name}.png", png(chart))


def intervals(document: Document, stem: str) -> Chart:
    """Every method's value and 95 % interval, best first, in the main metric and in the gold's log-likelihood."""
    shown = [metric for metric in metrics(document) if metric in (document["metric"], LIKELIHOOD)]
    caption = (
        f"{_sentence(' and '.join(map(metric_name, shown)))} of every method with 95 % intervals, best at the top. "
        f"The diamond and the dashed line are {short(document['reference'])}. Whether two methods differ is told by "
        "their paired difference, not by whether these intervals overlap."
    )
    return Chart(f"{stem}-intervals", caption, lambda: plots.draw_intervals(document, shown))


def by_bytes(document: Document, stem: str) -> Chart:
    """The main metric against the bytes that are kept for a user."""
    caption = (
        f"{_sentence(metric_name(document['metric']))} against the bytes kept for a user, with 95 % intervals; better "
        "is up. Sizes are logarithmic; methods that keep nothing stand left of the break, and those of one size side "
        "by side. A filled mark: no other method is as good with as few bytes. The line joins these."
    )
    return Chart(f"{stem}-bytes", caption, lambda: pareto_plot.draw_bytes(document))


def across(documents: Sequence[Document], by: str, stem: str) -> Chart:
    """The main metric against `by` (shots or anchors), a panel for each method beside the reference.

    The documents are of one design but for `by`, in its order, as `results.series` gives them.
    """
    last = documents[-1]
    caption = (
        f"{_sentence(metric_name(last['metric']))} by number of {by}, with bands of the 95 % intervals; better is up. "
        f"In every panel the dashed line is {short(last['reference'])}."
    )
    if not same_settings(documents):
        caption += " Settings differ between these evaluations."
    return Chart(f"{stem}-by-{by}", caption, lambda: plots.draw_across(documents, by))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
