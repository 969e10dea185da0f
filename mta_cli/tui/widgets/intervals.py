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

from mta_cli.tui.widgets.axis import Scale, around, number
from mta_cli.tui.widgets.canvas import Sheet, fitted
from mta_cli.tui.widgets.plot import Plot

Tone = Literal["plain", "strong", "good", "bad"]
NAMES, ROOMY, LEAST = 18, 60, 8  # cells: a name at most; a width with room for `note`; a bar at least
LOW, HIGH, VALUE, LINE, MARK, CROSSED = "├", "┤", "●", "─", "┊", "┼"


@dataclass(frozen=True)
class Span:
    """A row: `low` … `high` around `value`, None where not known. `note` says them as text."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    note: str = ""
    tone: Tone = "plain"


class Intervals(Plot):
    """Rows of bars over an axis, as high as it needs to be; `mark` is where the line stands."""

    PART = "intervals"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"intervals--{name}" for name in ("plain", "strong", "good", "bad", "axis", "mark")
    }
    DEFAULT_CSS = """
    Intervals {
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
        self._spans: Sequence[Span] = ()
        self._mark: float | None = None

    def put(self, spans: Sequence[Span], mark: float | None = None) -> None:
        """Draw these rows."""
        self._spans, self._mark = tuple(spans), mark
        self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The rows, the axis and its numbers."""
        return len(self._spans) + 2 if self._spans else 0

    def render(self) -> Text:
        """All of it."""
        return self.painted(draw(self._spans, self._mark, self.content_size.width))


def draw(spans: Sequence[Span], mark: float | None, width: int) -> Sheet:
    """The bars on so many cells; notes are left out where there is no room for them."""
    sheet = Sheet(width, len(spans) + 2 if spans else 0)
    names = min(NAMES, max((cell_len(span.name) for span in spans), default=0), width // 3)
    notes = max((cell_len(span.note) for span in spans), default=0) if width >= ROOMY else 0
    left = names + 1
    cells = width - left - (notes + 1 if notes else 0)
    if not spans or cells < LEAST:
        return sheet
    ends = (end for span in spans for end in (span.value, span.low, span.high, mark))
    scale = around([end for end in ends if end is not None], cells)
    for y, span in enumerate(spans):
        sheet.put(0, y, fitted(span.name, names), span.tone)
        _bar(sheet, left, y, span, scale, mark)
        if notes:
            sheet.put(width - notes, y, fitted(span.note, notes).rjust(notes), span.tone)
    _axis(sheet, left, scale, mark)
    return sheet


def _bar(sheet: Sheet, left: int, y: int, span: Span, scale: Scale, mark: float | None) -> None:
    """A whisker from end to end with the value on it, over the line at `mark`; an end not known is not drawn."""
    at = None if mark is None else scale.cell(mark)
    if at is not None:
        sheet.put(left + at, y, MARK, "mark")
    if span.value is None:
        return
    first = scale.cell(span.value if span.low is None else span.low)
    last = scale.cell(span.value if span.high is None else span.high)
    sheet.put(left + first, y, LINE * (last - first + 1), span.tone)
    if at is not None and first <= at <= last:
        sheet.put(left + at, y, CROSSED, "mark")
    if span.low is not None:
        sheet.put(left + first, y, LOW, span.tone)
    if span.high is not None:
        sheet.put(left + last, y, HIGH, span.tone)
    sheet.put(left + scale.cell(span.value), y, VALUE, span.tone)


def _axis(sheet: Sheet, left: int, scale: Scale, mark: float | None) -> None:
    y = sheet.height - 2
    sheet.put(left, y, LINE * scale.cells, "axis")
    for tick in scale.ticks(max(3, scale.cells // 12)):
        shown = number(tick)
        at = left + scale.cell(tick)
        sheet.put(at, y, "┴", "axis")
        start = min(max(at - len(shown) // 2, left), sheet.width - len(shown))
        if sheet.free(start - 1, y + 1, len(shown) + 1):
            sheet.put(start, y + 1, shown, "axis")
    if mark is not None:
        sheet.put(left + scale.cell(mark), y, "╂", "mark")
