"""Quality against bytes stored for a user, on a logarithmic axis with an extra column for zero.

Draws given numbers. Names are beside their points if there is room, otherwise in a legend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase, digits
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text

from mta_cli.text.formatting import format_bytes
from mta_cli.tui.widgets.charts.axis import Scale, fit_scale, format_tick
from mta_cli.tui.widgets.charts.canvas import Canvas, truncate_line
from mta_cli.tui.widgets.charts.plot import Plot

LEGEND_LETTERS = ascii_lowercase + digits
FRONT_CHAR, OTHER_CHAR, REFERENCE_CHAR = "●", "○", "◆"
MAX_NAME_CELLS = 16
LEGEND_ROWS = 2  # rows for names without room beside their points
MIN_PLOT_SIZE = (24, 8)  # the minimum size of a plot in cells
OVERLAP_OFFSETS = (0, 1, -1, 2, -2, 3, -3)  # offsets by which overlapping points are moved apart
CellPosition = tuple[int, int]


@dataclass(frozen=True)
class SizePoint:
    """A method: the bytes that it stores for a user, and its value."""

    name: str
    bytes: float
    value: float
    on_pareto_front: bool = False
    is_reference: bool = False

    @property
    def style_name(self) -> str:
        """The name of its style."""
        return "chosen" if self.is_reference else "front" if self.on_pareto_front else "other"


class SizePlot(Plot):
    """The plot, which fills the available room."""

    COMPONENT_PREFIX = "size-plot"
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
        self._points: Sequence[SizePoint] = ()
        self._title, self._lower_is_better = "", False

    def show_points(self, points: Sequence[SizePoint], title: str, *, lower_is_better: bool = False) -> None:
        """Draw these methods; better values are always higher."""
        self._points, self._title, self._lower_is_better = tuple(points), title, lower_is_better
        self.refresh()

    def render(self) -> Text:
        """All of it."""
        return self.render_canvas(
            draw_size_plot(self._points, self._title, *self.content_size, downward=self._lower_is_better)
        )


@dataclass(frozen=True)
class _PlotLayout:
    """The position of the plot on the canvas, and the scales of values and sizes. `zero`: there is a column for zero
    bytes.
    """

    left: int
    height: int
    x_scale: Scale
    y_scale: Scale
    has_zero_column: bool
    lower_is_better: bool

    def column(self, count: float) -> int:
        """The column of a number of bytes."""
        return self.left + (self.x_scale.cell(math.log10(count)) + self.zero_column_width if count > 0 else 1)

    def row(self, value: float) -> int:
        """The row of a value below the title; the best is on top."""
        cell = self.y_scale.cell(value)
        return 1 + (cell if self.lower_is_better else self.height - 1 - cell)

    def contains(self, x: int, y: int) -> bool:
        """Whether a cell lies in the plot, right of the axis."""
        return x > self.left and 1 <= y <= self.height

    @property
    def zero_column_width(self) -> int:
        """The width of the column for zero bytes."""
        return 6 if self.has_zero_column else 0


def draw_size_plot(
    points: Sequence[SizePoint], title: str, width: int, height: int, *, downward: bool = False
) -> Canvas:
    """The plot on so many cells, or a message if they are too few."""
    canvas = Canvas(width, height)
    if not points or width < MIN_PLOT_SIZE[0] or height < MIN_PLOT_SIZE[1]:
        canvas.write_text(1, height // 2, truncate_line("No room for a plot." if points else "", width - 2), "axis")
        return canvas
    layout = _layout(points, width, height - 3 - LEGEND_ROWS, downward)
    canvas.write_text(0, 0, truncate_line(title, width), "axis")
    _draw_front_line(canvas, points, layout)
    cells = _draw_markers(canvas, points, layout)
    unnamed = _draw_names(canvas, points, cells, layout)
    _draw_axes(canvas, layout)
    _draw_legend(canvas, unnamed)
    return canvas


def _layout(points: Sequence[SizePoint], width: int, height: int, downward: bool) -> _PlotLayout:
    up = fit_scale([one.value for one in points], height, margin=0.06)
    left = max(len(format_tick(tick)) for tick in up.ticks(_tick_count(height))) + 1
    powers = [math.log10(one.bytes) for one in points if one.bytes > 0] or [0.0]
    zero = any(one.bytes <= 0 for one in points)
    across = Scale(min(powers) - 0.2, max(powers) + 0.8, width - left - (6 if zero else 0))
    return _PlotLayout(left, height, across, up, zero, downward)


def _draw_front_line(canvas: Canvas, points: Sequence[SizePoint], layout: _PlotLayout) -> None:
    """Draw the step line along the Pareto front."""
    front = sorted((one for one in points if one.on_pareto_front), key=lambda one: one.bytes)
    before = None
    for one, larger in zip(front, [*front[1:], None], strict=False):
        end = canvas.width - 1 if larger is None else layout.column(larger.bytes)
        x, y = layout.column(one.bytes), layout.row(one.value)
        canvas.write_text(x, y, "─" * (end - x + 1), "line")
        if before is not None and before > y:
            for between in range(y + 1, before):
                canvas.write_text(x, between, "│", "line")
            canvas.write_text(x, before, "┘", "line")
        before = y


def _draw_markers(canvas: Canvas, points: Sequence[SizePoint], layout: _PlotLayout) -> dict[SizePoint, CellPosition]:
    """Draw the methods' markers: front and reference first, others moved a little aside if necessary."""
    taken: dict[CellPosition, SizePoint] = {}
    for one in sorted(points, key=lambda one: (not one.is_reference, not one.on_pareto_front)):
        x, y = layout.column(one.bytes), layout.row(one.value)
        free = ((x + aside, y) for aside in OVERLAP_OFFSETS if layout.left <= x + aside < canvas.width)
        taken.setdefault(next((cell for cell in free if cell not in taken), (x, y)), one)
    cells = {one: cell for cell, one in taken.items()}
    for one, (x, y) in cells.items():
        canvas.write_text(
            x,
            y,
            REFERENCE_CHAR if one.is_reference else FRONT_CHAR if one.on_pareto_front else OTHER_CHAR,
            one.style_name,
        )
    return cells


def _draw_names(
    canvas: Canvas, points: Sequence[SizePoint], cells: dict[SizePoint, CellPosition], layout: _PlotLayout
) -> list[tuple[str, SizePoint]]:
    """Write names beside their points; those without room become a letter. Returns letters with their methods."""
    without: list[SizePoint] = []
    for one in sorted(points, key=lambda one: (not one.is_reference, not one.on_pareto_front)):
        if one not in cells:
            without.append(one)
            continue
        x, y = cells[one]
        name = truncate_line(one.name, MAX_NAME_CELLS)
        wide = cell_len(name)
        places = ((x + 2, y), (x - 1 - wide, y), (x + 1, y - 1), (x + 1, y + 1), (x - wide, y - 1), (x - wide, y + 1))
        place = next(
            (at for at in places if layout.contains(*at) and canvas.is_blank(at[0] - 1, at[1], wide + 2)), None
        )
        if place is None:
            without.append(one)
        else:
            canvas.write_text(*place, name, one.style_name)
    letters = [(LEGEND_LETTERS[n] if n < len(LEGEND_LETTERS) else "+", one) for n, one in enumerate(without)]
    for sign, one in letters:
        if one in cells and not one.is_reference:
            canvas.write_text(*cells[one], sign, one.style_name)
    return letters


def _tick_count(height: int) -> int:
    """The approximate number of ticks on the value axis."""
    return max(5, height // 5)


def _draw_axes(canvas: Canvas, layout: _PlotLayout) -> None:
    for tick in layout.y_scale.ticks(_tick_count(layout.height)):
        canvas.write_text(0, layout.row(tick), format_tick(tick).rjust(layout.left - 1), "axis")
    y = layout.height + 1
    canvas.write_text(layout.left, y, "─" * (canvas.width - layout.left), "axis")
    if layout.has_zero_column:
        canvas.write_text(layout.left, y, " 0 ", "axis")
        canvas.write_text(layout.left + layout.zero_column_width - 1, y, "╱", "axis")
    for power in range(math.ceil(layout.x_scale.low), math.floor(layout.x_scale.high) + 1):
        words, x = format_bytes(10.0**power), layout.column(10.0**power)
        if x + len(words) <= canvas.width:
            canvas.write_text(x, y, words, "axis")


def _draw_legend(canvas: Canvas, unnamed: Sequence[tuple[str, SizePoint]]) -> None:
    """Write the meaning of the letters on the last rows."""
    x, y = 0, canvas.height - LEGEND_ROWS
    for sign, one in unnamed:
        words = truncate_line(one.name, MAX_NAME_CELLS)
        if x + cell_len(words) + 2 > canvas.width:
            x, y = 0, y + 1
        x = canvas.write_text(x, y, f"{sign} ", "axis")
        x = canvas.write_text(x, y, f"{words}  ", one.style_name)
