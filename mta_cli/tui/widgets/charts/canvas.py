"""A rectangle of character cells on which charts draw text. Uses no widgets and no theme."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from mta_cli.text.printable import clean_text

BLANK = " "


class Canvas:
    """`width` × `height` cells. Text is cleaned, and cut at the edge. A wide character takes two cells."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = max(0, width), max(0, height)
        self._cells = [[BLANK] * self.width for _ in range(self.height)]
        self._styles = [[""] * self.width for _ in range(self.height)]

    def write_text(self, x: int, y: int, text: str, style: str = "") -> int:
        """Write text to the right from a cell, cut at the edge; `style` is a style's name. Returns the next free x."""
        for char in clean_text(text).replace("\n", BLANK).replace("\t", BLANK):
            cells = cell_len(char)
            if not 0 <= y < self.height or x < 0 or x + max(cells, 1) > self.width:
                break
            if cells:
                self._cells[y][x : x + cells] = [char] + [""] * (cells - 1)
                self._styles[y][x : x + cells] = [style] * cells
            elif x:  # a combining mark
                self._cells[y][x - 1] += char
            x += cells
        return x

    def write_char(self, x: int, y: int, char: str, style: str = "") -> None:
        """Write one character of a single cell's width, unchecked; faster than `write_text`."""
        self._cells[y][x], self._styles[y][x] = char, style

    def is_blank(self, x: int, y: int, width: int) -> bool:
        """Whether `width` cells to the right from here are inside the canvas and blank."""
        inside = 0 <= y < self.height and x >= 0 and x + width <= self.width
        return inside and all(cell == BLANK for cell in self._cells[y][x : x + width])

    def to_rich_text(self, style: Callable[[str], Style]) -> Text:
        """The canvas as Rich text; `style` turns a style's name into a style."""
        shown = Text(no_wrap=True, overflow="crop", end="")
        for y, (cells, styles) in enumerate(zip(self._cells, self._styles, strict=True)):
            for name, run in groupby(zip(styles, cells, strict=True), key=lambda pair: pair[0]):
                shown.append("".join(cell for _, cell in run), style(name) if name else None)
            if y < self.height - 1:
                shown.append("\n")
        return shown

    def plain(self) -> list[str]:
        """The rows as strings without styles, for tests."""
        return ["".join(row).rstrip() for row in self._cells]

    def style_at(self, x: int, y: int) -> str:
        """The name of a cell's style."""
        return self._styles[y][x]


def truncate_line(text: str, width: int) -> str:
    """A cleaned line of at most `width` cells; a cut line ends with an ellipsis."""
    shown = " ".join(clean_text(text.replace("\r", "\n")).split())
    if cell_len(shown) <= width:
        return shown
    while shown and cell_len(shown) > width - 1:
        shown = shown[:-1]
    return shown + "…" if width > 0 else ""
