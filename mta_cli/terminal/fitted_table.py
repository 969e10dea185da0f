"""A table that fits the terminal: in columns, else each row as lines of title and value. Part of `output`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

COLUMN_GAP = 3  # cells between two columns
MIN_WRAPPED_WIDTH = 20  # cells; the widest column may be wrapped to so many, and no other column
Cell = tuple[str, bool]  # its text, and whether it is bold


class FittedTable:
    """Titles and rows of clean cells. The columns with the indices in `right` are right-aligned."""

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[Cell]], right: Collection[int]) -> None:
        self._titles, self._rows, self._right = titles, rows, right

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The table as the width of the console allows."""
        yield self._columns() if self._narrowest() <= options.max_width else self._stacked()

    def _narrowest(self) -> int:
        widths = [
            max([cell_len(title), *(cell_len(row[index][0]) for row in self._rows)])
            for index, title in enumerate(self._titles)
        ]
        widest = max(widths)
        return sum(widths) + COLUMN_GAP * (len(widths) - 1) - widest + min(widest, MIN_WRAPPED_WIDTH)

    def _columns(self) -> RenderableType:
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index, title in enumerate(self._titles):
            shown.add_column(Text(title), justify="right" if index in self._right else "left", overflow="fold")
        for row in self._rows:
            shown.add_row(*(_text(cell) for cell in row))
        return shown

    def _stacked(self) -> RenderableType:
        return Group(*(part for row in self._rows for part in (self._record(row), Text(""))))

    def _record(self, row: Sequence[Cell]) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=max(map(cell_len, self._titles)), overflow="fold")
        grid.add_column(overflow="fold")
        for title, cell in zip(self._titles, row, strict=True):
            if cell[0]:
                grid.add_row(Text(title, style="bold"), _text(cell))
        return grid


def _text(cell: Cell) -> Text:
    text, bold = cell
    return Text(text, style="bold" if bold else "")
