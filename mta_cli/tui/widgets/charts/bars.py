"""A bar chart in characters: a label, a bar and a number on each line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from mta_cli.tui.widgets.charts.canvas import truncate_line

EIGHTHS = " ▏▎▍▌▋▊▉"
FULL_BLOCK, NEGATIVE_BLOCK = "█", "▒"  # for values above and below zero
LABEL_SHARE = 0.4


@dataclass(frozen=True)
class Bar:
    """A labelled bar; a value of None has no bar. `value_text` is the number beside it; `strong` lines are highlighted.

    `tone` chooses the colour: good, bad, or an empty text. The label must say the same without colour.
    """

    label: str
    value: float | None
    value_text: str
    strong: bool = False
    tone: str = ""


def bar_text(value: float | None, most: float, width: int) -> str:
    """The characters of a bar of at most `width` cells, which the value `most` fills; negative bars are hatched."""
    if value is None or not math.isfinite(value) or most <= 0 or width < 1:
        return ""
    part = min(abs(value) / most, 1.0)
    if value < 0:
        return NEGATIVE_BLOCK * max(1, round(part * width))
    whole, eighths = divmod(round(part * width * 8), 8)
    return FULL_BLOCK * whole + EIGHTHS[eighths].strip()


def bar_lines(
    bars: Sequence[Bar], width: int, style: str = "", quiet: str = "dim", tones: Mapping[str, str] | None = None
) -> Text:
    """A line for each bar in `width` cells: label, bar and number.

    `style` is the style of bars, `quiet` the style of numbers that are not strong; `tones` are the styles of labels and
    bars by tone. A bar of full length is 1, or the largest absolute value if that is greater.
    """
    shown = Text(no_wrap=True, overflow="crop", end="")
    numbers = max((cell_len(one.value_text) for one in bars), default=0)
    labels = min(max((cell_len(one.label) for one in bars), default=0), int(width * LABEL_SHARE))
    room = max(0, width - labels - numbers - 2)
    values = [abs(one.value) for one in bars if one.value is not None and math.isfinite(one.value)]
    most = max([1.0, *values])
    for n, one in enumerate(bars):
        label, tone = truncate_line(one.label, labels), (tones or {}).get(one.tone, "")
        shown.append("\n" if n else "")
        shown.append(label + " " * (labels - cell_len(label) + 1), f"bold {tone}" if one.strong else tone)
        drawn = bar_text(one.value, most, room)
        shown.append(drawn + " " * (room - len(drawn) + 1), tone or style)
        shown.append(truncate_line(one.value_text, numbers).rjust(numbers), "" if one.strong else quiet)
    return shown


class BarChart(Widget):
    """A chart with one line for each bar."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"bars--bar", "bars--quiet", "bars--good", "bars--bad"}
    DEFAULT_CSS = """
    BarChart { height: auto; width: 1fr; }
    BarChart > .bars--bar { color: $primary; }
    BarChart > .bars--quiet { color: $text-muted; }
    BarChart > .bars--good { color: $text-success; }
    BarChart > .bars--bad { color: $text-error; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._bars: tuple[Bar, ...] = ()

    def show_bars(self, bars: Sequence[Bar]) -> None:
        """Replace the bars of the chart."""
        self._bars = tuple(bars)
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The number of bars: each has one line."""
        return len(self._bars)

    def render(self) -> RenderableType:
        """The chart at the current width."""
        bar, quiet, good, bad = (
            str(self.get_component_rich_style(f"bars--{name}")) for name in ("bar", "quiet", "good", "bad")
        )
        return bar_lines(self._bars, self.size.width, bar, quiet, {"good": good, "bad": bad})
