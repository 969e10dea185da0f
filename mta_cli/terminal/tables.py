"""Draws tables as lines of text that fit the terminal's width.

Rich's own tables are not used because they are too slow: 100,000 rows would take minutes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from mta_cli.text.printable import clean_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.text import Text

GAP = "   "  # between two columns
MIN_FOLDED_WIDTH = 20  # cells; a table is shown in columns if it fits with its widest column wrapped to this width


@dataclass(frozen=True)
class BoldCell:
    """A cell that a table shows in bold."""

    value: object


class TableLayout:
    """Aligns the columns of rows that arrive in pages; a column widens if a later page needs it."""

    def __init__(self, titles: Sequence[str], right: Collection[int]) -> None:
        self.titles, self._right = titles, right
        self.widths = [_width_in_cells(title) for title in titles]

    def fit(self, rows: Sequence[Sequence[str]]) -> None:
        """Widen the columns to hold these rows."""
        for index, width in enumerate(self.widths):
            self.widths[index] = max([width, *(_width_in_cells(row[index]) for row in rows)])

    @property
    def width(self) -> int:
        """The width of a line in cells."""
        return sum(self.widths) + len(GAP) * (len(self.widths) - 1)

    @property
    def rule(self) -> str:
        """The line below the titles."""
        return "─" * self.width

    def align(self, row: Sequence[str]) -> list[str]:
        """The cells of a row, padded to the widths of their columns."""
        spaces = [" " * (width - _width_in_cells(cell)) for cell, width in zip(row, self.widths, strict=True)]
        return [
            space + cell if index in self._right else cell + space
            for index, (cell, space) in enumerate(zip(row, spaces, strict=True))
        ]

    def line(self, row: Sequence[str]) -> str:
        """A row as one line."""
        return GAP.join(self.align(row)).rstrip()

    def vertical(self, row: Sequence[str]) -> str:
        """A row for narrow terminals: a line of title and value for each column, then an empty line."""
        longest = max(map(_width_in_cells, self.titles))
        named = zip(self.titles, row, strict=True)
        return "".join(f"{title}{' ' * (longest - _width_in_cells(title))}  {cell}\n" for title, cell in named)


class FittedTable:
    """A table for Rich: in columns, the widest one wrapped, or each row as lines of title and value."""

    def __init__(self, titles: Sequence[str], rows: Sequence[Sequence[object]], right: Collection[int]) -> None:
        self._titles, self._rows, self._right = titles, rows, right

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields the lines of the table, laid out for the width of the console."""
        layout = TableLayout(self._titles, self._right)
        layout.fit([[format_cell(value) for value in row] for row in self._rows])
        widest = max(layout.widths)
        if layout.width - widest + min(widest, MIN_FOLDED_WIDTH) > options.max_width:
            title_width = max(map(_width_in_cells, self._titles))
            for row in self._rows:
                named = [(title, value) for title, value in zip(self._titles, row, strict=True) if format_cell(value)]
                yield key_value_grid([*named, ("", "")], title_width)
            return
        while layout.width > options.max_width:
            layout.widths[layout.widths.index(max(layout.widths))] -= 1
        yield from _row_lines(layout, [BoldCell(title) for title in self._titles], console)
        yield _line_text(layout.rule)
        for row in self._rows:
            yield from _row_lines(layout, row, console)


def _row_lines(layout: TableLayout, row: Sequence[object], console: Console) -> Iterator[Text]:
    styles = ["bold" if isinstance(value, BoldCell) else "" for value in row]
    folded = [
        [part.plain.rstrip() for part in _line_text(text).wrap(console, width, overflow="fold", no_wrap=False)]
        if _width_in_cells(text) > width
        else [text]
        for text, width in zip(map(format_cell, row), layout.widths, strict=True)
    ]
    for cells in zip_longest(*folded, fillvalue=""):
        line = _line_text()
        for index, (cell, style) in enumerate(zip(layout.align(cells), styles, strict=True)):
            line.append(GAP if index else "").append(cell, style)
        line.rstrip()
        yield line


def _line_text(line: str = "") -> Text:
    from rich.text import Text

    return Text(line, no_wrap=True, overflow="ignore")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Collection[int] = ()) -> RenderableType:
    """A table of plain, cleaned cells. Columns that hold only numbers are right-aligned; None is a dash.

    The columns with the indices in `right` are always right-aligned.
    """
    body = [tuple(row) for row in rows]
    return FittedTable(columns, body, number_columns(body) | set(right))


def key_value_grid(rows: Iterable[tuple[str, object]], min_width: int | None = None) -> RenderableType:
    """Aligned names and values, one pair per line, for `show` commands. `min_width` is the minimum width of names in
    cells.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=min_width)
    grid.add_column(overflow="fold")
    for name, value in rows:
        style = "bold" if isinstance(value, BoldCell) else ""
        grid.add_row(Text(clean_line(name), style="bold"), Text(format_cell(value), style=style))
    return grid


def number_columns(rows: Sequence[Sequence[object]]) -> set[int]:
    """The indices of the columns whose cells are numbers or None, with at least one number."""
    known = [[cell for cell in column if cell is not None] for column in zip(*rows, strict=True)]
    return {
        index
        for index, cells in enumerate(known)
        if cells and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells)
    }


def format_cell(value: object) -> str:
    """A value as text for a cell: a float with four significant digits, `yes` or `no`, a dash for None."""
    if isinstance(value, BoldCell):
        return format_cell(value.value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_cell(inner) for inner in value)
    return clean_line(str(value))


def _width_in_cells(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
