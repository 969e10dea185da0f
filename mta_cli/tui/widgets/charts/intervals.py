"""A plot of values with their intervals on one axis, with a vertical line at a reference value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.cells import cell_len
from rich.text import Text
from textual.geometry import Size

from mta_cli.tui.widgets.charts.canvas import Canvas, truncate_line
from mta_cli.tui.widgets.charts.plot import Plot

Tone = Literal["plain", "strong", "good", "bad"]
MAX_NAME_CELLS, MIN_BAR_CELLS = 18, 8
AXIS_MARGIN = 0.03  # free at each end of the axis, as a share of the values' range
MIN_NOTE_WIDTH = 60  # the minimum width of a plot with notes
LOW_CHAR, HIGH_CHAR, VALUE_CHAR, LINE_CHAR, REFERENCE_CHAR, CROSSING_CHAR = "├", "┤", "●", "─", "┊", "┼"


@dataclass(frozen=True)
class IntervalRow:
    """A row of the plot: `value` with its interval `low` to `high`, None if unknown. `note` says the same as text."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""
    tone: Tone = "plain"


class IntervalPlot(Plot):
    """Rows of intervals above an axis, as high as needed; the line is at `reference`."""

    COMPONENT_PREFIX = "intervals"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"intervals--{name}" for name in ("plain", "strong", "good", "bad", "axis", "reference")
    }
    DEFAULT_CSS = """
    IntervalPlot {
        height: auto;
        & > .intervals--plain { color: $foreground 80%; }
        & > .intervals--strong { color: $accent; text-style: bold; }
        & > .intervals--good { color: $success; }
        & > .intervals--bad { color: $error; }
        & > .intervals--axis { color: $text-muted; }
        & > .intervals--reference { color: $accent 70%; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._interval_rows: Sequence[IntervalRow] = ()
        self._reference: float | None = None

    def show_intervals(self, rows: Sequence[IntervalRow], reference: float | None = None) -> None:
        """Replace the rows and the reference value of the plot."""
        self._interval_rows, self._reference = tuple(rows), reference
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The lines of the plot: one for each row, the axis and its numbers."""
        return len(self._interval_rows) + 2 if self._interval_rows else 0

    def render(self) -> Text:
        """The whole plot."""
        return self.render_canvas(draw_intervals(self._interval_rows, self._reference, self.content_size.width))


def draw_intervals(rows: Sequence[IntervalRow], reference: float | None, width: int) -> Canvas:
    """Draw the rows in `width` cells; below `MIN_NOTE_WIDTH` cells, notes are left out."""
    canvas = Canvas(width, len(rows) + 2 if rows else 0)
    names = min(MAX_NAME_CELLS, max((cell_len(row.name) for row in rows), default=0), width // 3)
    notes = max((cell_len(row.note) for row in rows), default=0) if width >= MIN_NOTE_WIDTH else 0
    left = names + 1
    cells = width - left - (notes + 1 if notes else 0)
    if not rows or cells < MIN_BAR_CELLS:
        return canvas
    ends = (end for row in rows for end in (row.value, row.low, row.high, reference))
    scale = fit_scale([end for end in ends if end is not None], cells)
    for y, row in enumerate(rows):
        canvas.write_text(0, y, truncate_line(row.name, names), row.tone)
        _draw_interval(canvas, left, y, row, scale, reference)
        if notes:
            canvas.write_text(width - notes, y, truncate_line(row.note, notes).rjust(notes), row.tone)
    _draw_axis(canvas, left, scale, reference)
    return canvas


def _draw_interval(canvas: Canvas, left: int, y: int, row: IntervalRow, scale: Scale, reference: float | None) -> None:
    """Draw a whisker with the value on it, over the line at `reference`; an unknown end is not drawn."""
    at = None if reference is None else scale.cell(reference)
    if at is not None:
        canvas.write_text(left + at, y, REFERENCE_CHAR, "reference")
    if row.value is None:
        return
    first = scale.cell(row.value if row.low is None else row.low)
    last = scale.cell(row.value if row.high is None else row.high)
    canvas.write_text(left + first, y, LINE_CHAR * (last - first + 1), row.tone)
    if at is not None and first <= at <= last:
        canvas.write_text(left + at, y, CROSSING_CHAR, "reference")
    if row.low is not None:
        canvas.write_text(left + first, y, LOW_CHAR, row.tone)
    if row.high is not None:
        canvas.write_text(left + last, y, HIGH_CHAR, row.tone)
    canvas.write_text(left + scale.cell(row.value), y, VALUE_CHAR, row.tone)


def _draw_axis(canvas: Canvas, left: int, scale: Scale, reference: float | None) -> None:
    y = canvas.height - 2
    canvas.write_text(left, y, LINE_CHAR * scale.cells, "axis")
    for tick in scale.ticks(max(3, scale.cells // 12)):
        shown = format_tick(tick)
        at = left + scale.cell(tick)
        canvas.write_text(at, y, "┴", "axis")
        start = min(max(at - len(shown) // 2, left), canvas.width - len(shown))
        if canvas.is_blank(start - 1, y + 1, len(shown) + 1):
            canvas.write_text(start, y + 1, shown, "axis")
    if reference is not None:
        canvas.write_text(left + scale.cell(reference), y, "╂", "reference")


@dataclass(frozen=True)
class Scale:
    """An axis that maps values from `low` to `high` to the cells 0 to `cells` - 1."""

    low: float
    high: float
    cells: int

    def cell(self, value: float) -> int:
        """The cell of a value, clipped to the axis."""
        reach = self.high - self.low
        part = 0.5 if reach <= 0 else (value - self.low) / reach
        return min(max(round(part * (self.cells - 1)), 0), max(self.cells - 1, 0))

    def ticks(self, wanted: int) -> list[float]:
        """About `wanted` round values within the axis."""
        reach = self.high - self.low
        if reach <= 0 or not math.isfinite(reach):
            return [self.low]
        rough = reach / max(wanted, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [round(n * step, 12) + 0.0 for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def fit_scale(values: Sequence[float], cells: int) -> Scale:
    """An axis of `cells` cells that contains all finite values, with a margin at both ends."""
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    size = max(abs(low), abs(high), 1.0)
    reach = high - low if high - low > 1e-9 * size else size  # a smaller margin would be lost to rounding
    room = AXIS_MARGIN * reach
    return Scale(low - room, high + room, cells)


def format_tick(value: float) -> str:
    """A tick's value without trailing zeros, with at most four decimals."""
    return f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−") or "0"
