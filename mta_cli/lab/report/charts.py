"""The charts of an evaluation from its result documents, as SVG or PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.lab.report import plots, style
from mta_cli.lab.report.results import Document, metrics, same_settings
from mta_cli.lab.report.style import short_name
from mta_cli.pipeline.evaluation.metric_names import LOGLIK_METRIC, metric_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn. `name` is a safe file name without an extension; `caption` explains the chart."""

    name: str
    caption: str
    draw: Callable[[], Figure]


def chart_svg(chart: Chart) -> str:
    """The chart as one SVG element with real text, no script and no external content; the same bytes every time.

    Colours are CSS variables such as `var(--ink, …)`, so that a page can set them.
    """
    with style.chart_style():
        return style.figure_svg(chart.draw(), chart.name, chart.caption)


def chart_png(chart: Chart) -> bytes:
    """The chart as a PNG at 200 dots an inch; the same bytes every time."""
    with style.chart_style():
        return style.figure_png(chart.draw())


def interval_chart(document: Document, stem: str) -> Chart:
    """Every method's value and 95 % interval, best first, in the main metric and in the gold's log-likelihood."""
    shown = [metric for metric in metrics(document) if metric in (document["metric"], LOGLIK_METRIC)]
    caption = (
        f"{_capitalise(' and '.join(map(metric_name, shown)))} of every method with 95 % intervals, best at the "
        f"top. The diamond and the dashed line are {short_name(document['reference'])}. To see whether two methods "
        "differ, look at their paired difference, not at whether these intervals overlap."
    )
    return Chart(f"{stem}-intervals", caption, lambda: plots.draw_intervals(document, shown))


def size_chart(document: Document, stem: str) -> Chart:
    """The main metric against the bytes that are stored for a user."""
    caption = (
        f"{_capitalise(metric_name(document['metric']))} with 95 % intervals, by the bytes kept for a user. The "
        "fewest bytes are at the top. A filled mark: no other method is as good with as few bytes."
    )
    return Chart(f"{stem}-bytes", caption, lambda: plots.draw_bytes(document))


def series_chart(documents: Sequence[Document], by: str, stem: str) -> Chart:
    """The main metric against `by` (shots, anchors or task_epochs), a panel for each method that all have.

    The documents differ only in `by` and are sorted by it, as `results.find_series` returns them.
    """
    last, amount = documents[-1], by.replace("_", " ")
    caption = (
        f"{_capitalise(metric_name(last['metric']))} by number of {amount}, with bands of the 95 % intervals; better "
        f"is up. In every panel the dashed line is {plots.reference_title(last)}."
    )
    if not same_settings(documents):
        caption += " Settings differ between these evaluations."
    return Chart(f"{stem}-by-{amount.replace(' ', '-')}", caption, lambda: plots.draw_series(documents, by))


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]
