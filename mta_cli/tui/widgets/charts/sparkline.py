"""Textual's sparkline between the first and the last value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Sparkline, Static

from mta_cli.tui.text import line_text


class LabelledSparkline(Horizontal):
    """One line: a title, the first value, a curve, the last value and its change. Hidden without values.

    The curve always fills the height of the line, so only the change in percent shows the scale.
    """

    DEFAULT_CSS = """
    LabelledSparkline { height: 1; display: none; }
    LabelledSparkline Static { width: auto; }
    LabelledSparkline Sparkline { width: 1fr; margin: 0 1; }
    """

    def __init__(self, title: str = "", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = title
        self._first, self._last = Static(), Static()
        self._curve = Sparkline(summary_function=fmean)

    def compose(self) -> ComposeResult:
        """Title, first value, curve, last value."""
        yield self._first
        yield self._curve
        yield self._last

    def show_values(self, values: Sequence[float]) -> None:
        """Replace the values of the curve; values that are not finite are left out, and a single one has no curve."""
        finite = [value for value in values if math.isfinite(value)]
        self.display = bool(finite)
        self._curve.display = self._last.display = len(finite) > 1
        if finite:
            self._first.update(line_text(f"{self._title}{finite[0]:.3f}"))
            change = f" ({100 * (finite[-1] / finite[0] - 1):+.1f} %)".replace("-", "−") if finite[0] > 0 else ""
            self._last.update(line_text(f"{finite[-1]:.3f}{change}"))
            self._curve.data = finite
