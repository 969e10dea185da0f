"""A curve in one line of plain characters, between its first and its last value. Knows no meaning of the values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from rich.console import RenderableType
from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

SPARK_CHARS = "▁▂▃▄▅▆▇█"


def sparkline_text(values: Sequence[float], width: int) -> str:
    """At most `width` ticks: means of equal shares of the values that are numbers, the least as the lowest tick."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    count = min(width, len(finite))
    edges = [len(finite) * n // count for n in range(count + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, reach = min(means), (max(means) - min(means)) or 1.0
    return "".join(SPARK_CHARS[round((mean - low) / reach * (len(SPARK_CHARS) - 1))] for mean in means)


def labelled_sparkline(values: Sequence[float], width: int, style: str = "") -> Text:
    """The first value, the curve, the last value, in `width` cells; a single value stands alone."""
    finite = [value for value in values if math.isfinite(value)]
    shown = Text(no_wrap=True, overflow="crop", end="")
    if len(finite) < 2:
        return shown.append(f"{finite[0]:.3f}" if finite else "")
    first, last = f"{finite[0]:.3f} ", f" {finite[-1]:.3f}"
    shown.append(first)
    shown.append(sparkline_text(finite, width - len(first) - len(last)), style)
    return shown.append(last)


class LabelledSparkline(Widget):
    """One line of a curve; no line where there are no values."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"curve--line"}
    DEFAULT_CSS = """
    LabelledSparkline { height: auto; width: 1fr; }
    LabelledSparkline > .curve--line { color: $accent; }
    """

    def __init__(self, values: Sequence[float] = (), *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._values = tuple(values)

    def show_values(self, values: Sequence[float]) -> None:
        """Show these instead."""
        self._values = tuple(values)
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """One line, or none."""
        return 1 if self._values else 0

    def render(self) -> RenderableType:
        """As wide as there is room."""
        return labelled_sparkline(self._values, self.size.width, str(self.get_component_rich_style("curve--line")))
