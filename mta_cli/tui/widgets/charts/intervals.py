"""Values with their intervals as bars on one axis, with a line at what they are compared with.

Draws numbers that were computed elsewhere. Knows neither methods nor metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.cells import cell_len
from rich.text import Text
from textual.geometry import Size

from mta_cli.tui.widgets.charts.axis import Scale, fit_scale, format_tick
from mta_cli.tui.widgets.charts.canvas import Canvas, truncate_line
from mta_cli.tui.widgets.charts.plot import Plot

Tone = Literal["plain", "strong", "good", "bad"]
MAX_NAME_CELLS, MIN_BAR_CELLS = 18, 8
MIN_NOTE_WIDTH = 60  # cells of a plot with room for notes
LOW_CHAR, HIGH_CHAR, VALUE_CHAR, LINE_CHAR, REFERENCE_CHAR, CROSSING_CHAR = "├", "┤", "●", "─", "┊", "┼"


@dataclass(frozen=True)
class IntervalRow:
    """A row: `low` … `high` around `value`, None where not known. `note` says them as text."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""
    tone: Tone = "plain"


class IntervalPlot(Plot):
    """Rows of bars over an axis, as high as it needs to be; `mark` is where the line stands."""

    COMPONENT_PREFIX = "intervals"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"intervals--{name}" for name in ("plain", "strong", "good", "bad", "axis", "mark")
    }
    DEFAULT_CSS = """
    IntervalPlot {
        height: auto;
        & > .intervals--plain { color: $foreground 80%; }
        & > .intervals--strong { color: $accent; text-style: bold; }
        & > .intervals--good { color: $success; }
        & > .intervals--bad { color: $error; }
        & > .intervals--axis { color: $text-muted; }
        & > .intervals--mark { color: $accent 70%; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._interval_rows: Sequence[IntervalRow] = ()
        self._reference: float | None = None

    def show_intervals(self, spans: Sequence[IntervalRow], mark: float | None = None) -> None:
        """Draw these rows."""
        self._interval_rows, self._reference = tuple(spans), mark
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The rows, the axis and its numbers."""
        return len(self._interval_rows) + 2 if self._interval_rows else 0

    def render(self) -> Text:
        """All of it."""
        return self.render_canvas(draw_intervals(self._interval_rows, self._reference, self.content_size.width))


def draw_intervals(spans: Sequence[IntervalRow], mark: float | None, width: int) -> Canvas:
    """The bars on so many cells; notes are left out where there is no room for them."""
    canvas = Canvas(width, len(spans) + 2 if spans else 0)
    names = min(MAX_NAME_CELLS, max((cell_len(span.name) for span in spans), default=0), width // 3)
    notes = max((cell_len(span.note) for span in spans), default=0) if width >= MIN_NOTE_WIDTH else 0
    left = names + 1
    cells = width - left - (notes + 1 if notes else 0)
    if not spans or cells < MIN_BAR_CELLS:
        return canvas
    ends = (end for span in spans for end in (span.value, span.low, span.high, mark))
    scale = fit_scale([end for end in ends if end is not None], cells)
    for y, span in enumerate(spans):
        canvas.write_text(0, y, truncate_line(span.name, names), span.tone)
        _draw_interval(canvas, left, y, span, scale, mark)
        if notes:
            canvas.write_text(width - notes, y, truncate_line(span.note, notes).rjust(notes), span.tone)
    _draw_axis(canvas, left, scale, mark)
    return canvas


def _draw_interval(canvas: Canvas, left: int, y: int, span: IntervalRow, scale: Scale, mark: float | None) -> None:
    """A whisker from end to end with the value on it, over the line at `mark`; an end not known is not drawn."""
    at = None if mark is None else scale.cell(mark)
    if at is not None:
        canvas.write_text(left + at, y, REFERENCE_CHAR, "mark")
    if span.value is None:
        return
    first = scale.cell(span.value if span.low is None else span.low)
    last = scale.cell(span.value if span.high is None else span.high)
    canvas.write_text(left + first, y, LINE_CHAR * (last - first + 1), span.tone)
    if at is not None and first <= at <= last:
        canvas.write_text(left + at, y, CROSSING_CHAR, "mark")
    if span.low is not None:
        canvas.write_text(left + first, y, LOW_CHAR, span.tone)
    if span.high is not None:
        canvas.write_text(left + last, y, HIGH_CHAR, span.tone)
    canvas.write_text(left + scale.cell(span.value), y, VALUE_CHAR, span.tone)


def _draw_axis(canvas: Canvas, left: int, scale: Scale, mark: float | None) -> None:
    y = canvas.height - 2
    canvas.write_text(left, y, LINE_CHAR * scale.cells, "axis")
    for tick in scale.ticks(max(3, scale.cells // 12)):
        shown = format_tick(tick)
        at = left + scale.cell(tick)
        canvas.write_text(at, y, "┴", "axis")
        start = min(max(at - len(shown) // 2, left), canvas.width - len(shown))
        if canvas.is_blank(start - 1, y + 1, len(shown) + 1):
            canvas.write_text(start, y + 1, shown, "axis")
    if mark is not None:
        canvas.write_text(left + scale.cell(mark), y, "╂", "mark")
