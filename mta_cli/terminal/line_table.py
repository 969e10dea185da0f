"""A table of any length as lines of text, for rows that arrive in pages. Part of `output`.

Rich lays out a whole table at once and makes thousands of calls a row: 100,000 rows take minutes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len

_GAP = "   "


class LineTable:
    """Aligned columns in the look of `output.table`. A column widens when a later page needs it."""

    def __init__(self, titles: Sequence[str], right: Collection[int]) -> None:
        self._titles, self._right = titles, right
        self._widths = [cell_len(title) for title in titles]

    def fit(self, rows: Sequence[Sequence[str]]) -> None:
        """Widen the columns to hold these rows."""
        for index, width in enumerate(self._widths):
            self._widths[index] = max([width, *(cell_len(row[index]) for row in rows)])

    @property
    def width(self) -> int:
        """The cells of a line."""
        return sum(self._widths) + len(_GAP) * (len(self._widths) - 1)

    def header(self) -> tuple[str, str]:
        """The line of titles and the rule below it."""
        return self._line(self._titles), "─" * self.width

    def lines(self, rows: Sequence[Sequence[str]]) -> Iterator[str]:
        """One line a row, each with its line break."""
        return (f"{self._line(row)}\n" for row in rows)

    def stacked(self, rows: Sequence[Sequence[str]]) -> Iterator[str]:
        """Each row as lines of title and value, and an empty line, for a terminal that is too narrow for a table."""
        longest = max(map(cell_len, self._titles))
        for row in rows:
            named = zip(self._titles, row, strict=True)
            yield "".join(f"{title}{' ' * (longest - cell_len(title))}  {cell}\n" for title, cell in named) + "\n"

    def _line(self, row: Sequence[str]) -> str:
        cells = []
        for index, (cell, width) in enumerate(zip(row, self._widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if index in self._right else cell + space)
        return _GAP.join(cells).rstrip()
