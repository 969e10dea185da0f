"""Quality against bytes kept for a person, on a logarithmic axis that has a place for nothing at all.

Draws numbers that were computed elsewhere; names stand beside their points where there is room, below where not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase, digits
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text

from mta_cli.pipeline.report.wording import size
from mta_cli.tui.widgets.axis import Scale, around, number
from mta_cli.tui.widgets.canvas import Sheet, fitted
from mta_cli.tui.widgets.plot import Plot

LETTERS = ascii_lowercase + digits
BEST, OTHER, CHOSEN = "●", "○", "◆"
NAMES = 16
LEGEND = 2  # rows for names that found no room
LEAST = (24, 8)  # cells of a plot that is worth drawing
ASIDE = (0, 1, -1, 2, -2, 3, -3)  # cells by which points in one place are moved apart
Cell = tuple[int, int]


@dataclass(frozen=True)
class Kept:
    """A method: what is kept for a person, and how good it is. `front`: nothing as small is as good."""

    name: str
    bytes: float
    value: float
    front: bool = False
    chosen: bool = False

    @property
    def style(self) -> str:
        """The name of its style."""
        return "chosen" if self.chosen else "front" if self.front else "other"


class SizePlot(Plot):
    """The plot. It fills whatever room it is given."""

    PART = "size-plot"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"size-plot--{name}" for name in ("front", "other", "chosen", "axis", "line")
    }
    DEFAULT_CSS = """
    SizePlot {
        height: 1fr;
        min-height: 10;
        & > .size-plot--front { color: $foreground; text-style: bold; }
        & > .size-plot--other { color: $text-muted; }
        & > .size-plot--chosen { color: $accent; text-style: bold; }
        & > .size-plot--axis { color: $text-muted; }
        & > .size-plot--line { color: $primary; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._kept: Sequence[Kept] = ()
        self._title, self._downward = "", False

    def put(self, kept: Sequence[Kept], title: str, *, lower_is_better: bool = False) -> None:
        """Draw these methods; the better is always higher."""
        self._kept, self._title, self._downward = tuple(kept), title, lower_is_better
        self.refresh()

    def render(self) -> Text:
        """All of it."""
        return self.painted(draw(self._kept, self._title, *self.content_size, downward=self._downward))


@dataclass(frozen=True)
class _Frame:
    """Where the plot lies on the sheet, and how values and sizes fall on it. `zero`: nothing at all has a column."""

    left: int
    height: int
    across: Scale
    up: Scale
    zero: bool
    downward: bool

    def column(self, count: float) -> int:
        """The column of so many bytes."""
        return self.left + (self.across.cell(math.log10(count)) + self.shift if count > 0 else 1)

    def row(self, value: float) -> int:
        """The row of a value: the best is on top."""
        cell = self.up.cell(value)
        return cell if self.downward else self.height - 1 - cell

    @property
    def shift(self) -> int:
        """Columns that the place of nothing at all takes."""
        return 6 if self.zero else 0


def draw(kept: Sequence[Kept], title: str, width: int, height: int, *, downward: bool = False) -> Sheet:
    """The plot on so many cells, or a word where they are too few."""
    sheet = Sheet(width, height)
    if not kept or width < LEAST[0] or height < LEAST[1]:
        sheet.put(1, height // 2, fitted("No room for a plot." if kept else "", width - 2), "axis")
        return sheet
    frame = _frame(kept, width, height - 3 - LEGEND, downward)
    sheet.put(0, 0, fitted(title, width), "axis")
    plot = Sheet(width, frame.height)
    _line(plot, kept, frame)
    cells = _marks(plot, kept, frame)
    unnamed = _names(plot, kept, cells, frame.left)
    _copy(plot, sheet, 1)
    _axes(sheet, frame)
    _legend(sheet, unnamed)
    return sheet


def _frame(kept: Sequence[Kept], width: int, height: int, downward: bool) -> _Frame:
    up = around([one.value for one in kept], height, margin=0.06)
    left = max(len(number(tick)) for tick in up.ticks(_ticks(height))) + 1
    powers = [math.log10(one.bytes) for one in kept if one.bytes > 0] or [0.0]
    zero = any(one.bytes <= 0 for one in kept)
    across = Scale(min(powers) - 0.2, max(powers) + 0.8, width - left - (6 if zero else 0))
    return _Frame(left, height, across, up, zero, downward)


def _line(plot: Sheet, kept: Sequence[Kept], frame: _Frame) -> None:
    """The step line along the methods that nothing smaller equals."""
    front = sorted((one for one in kept if one.front), key=lambda one: one.bytes)
    before = None
    for one, larger in zip(front, [*front[1:], None], strict=False):
        end = plot.width - 1 if larger is None else frame.column(larger.bytes)
        x, y = frame.column(one.bytes), frame.row(one.value)
        plot.put(x, y, "─" * (end - x + 1), "line")
        if before is not None and before > y:
            for between in range(y + 1, before):
                plot.put(x, between, "│", "line")
            plot.put(x, before, "┘", "line")
        before = y


def _marks(plot: Sheet, kept: Sequence[Kept], frame: _Frame) -> dict[Kept, Cell]:
    """Where each method stands: those of the front and the chosen one first, others a little aside if need be."""
    taken: dict[Cell, Kept] = {}
    for one in sorted(kept, key=lambda one: (not one.chosen, not one.front)):
        x, y = frame.column(one.bytes), frame.row(one.value)
        free = ((x + aside, y) for aside in ASIDE if frame.left <= x + aside < plot.width)
        taken.setdefault(next((cell for cell in free if cell not in taken), (x, y)), one)
    cells = {one: cell for cell, one in taken.items()}
    for one, (x, y) in cells.items():
        plot.put(x, y, CHOSEN if one.chosen else BEST if one.front else OTHER, one.style)
    return cells


def _names(plot: Sheet, kept: Sequence[Kept], cells: dict[Kept, Cell], left: int) -> list[tuple[str, Kept]]:
    """Write names beside their points; those without room become a letter. Returns letters with their methods."""
    without: list[Kept] = []
    for one in sorted(kept, key=lambda one: (not one.chosen, not one.front)):
        if one not in cells:
            without.append(one)
            continue
        x, y = cells[one]
        name = fitted(one.name, NAMES)
        wide = cell_len(name)
        places = ((x + 2, y), (x - 1 - wide, y), (x + 1, y - 1), (x + 1, y + 1), (x - wide, y - 1), (x - wide, y + 1))
        place = next(((a, b) for a, b in places if a > left and plot.free(a - 1, b, wide + 2)), None)
        if place is None:
            without.append(one)
        else:
            plot.put(*place, name, one.style)
    letters = [(LETTERS[n] if n < len(LETTERS) else "+", one) for n, one in enumerate(without)]
    for sign, one in letters:
        if one in cells and not one.chosen:
            plot.put(*cells[one], sign, one.style)
    return letters


def _ticks(height: int) -> int:
    """About how many numbers the axis of values has."""
    return max(5, height // 5)


def _copy(plot: Sheet, sheet: Sheet, down: int) -> None:
    for y, row in enumerate(plot.rows()):
        for x, (char, style) in enumerate(row):
            if char:
                sheet.put(x, y + down, char, style)


def _axes(sheet: Sheet, frame: _Frame) -> None:
    for tick in frame.up.ticks(_ticks(frame.height)):
        sheet.put(0, frame.row(tick) + 1, number(tick).rjust(frame.left - 1), "axis")
    y = frame.height + 1
    sheet.put(frame.left, y, "─" * (sheet.width - frame.left), "axis")
    if frame.zero:
        sheet.put(frame.left, y, " 0 ", "axis")
        sheet.put(frame.left + frame.shift - 1, y, "╱", "axis")
    for power in range(math.ceil(frame.across.low), math.floor(frame.across.high) + 1):
        words, x = size(10.0**power), frame.column(10.0**power)
        if x + len(words) <= sheet.width:
            sheet.put(x, y, words, "axis")


def _legend(sheet: Sheet, unnamed: Sequence[tuple[str, Kept]]) -> None:
    """What the letters mean, on the last rows."""
    x, y = 0, sheet.height - LEGEND
    for sign, one in unnamed:
        words = fitted(one.name, NAMES)
        if x + cell_len(words) + 2 > sheet.width:
            x, y = 0, y + 1
        x = sheet.put(x, y, f"{sign} ", "axis")
        x = sheet.put(x, y, f"{words}  ", one.style)
