"""A recipe as one bar: a coloured segment with a letter for each anchor, then the task adapter's share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from mta_cli.tui.widgets.charts.anchor_colours import anchor_colour, anchor_letter
from mta_cli.tui.widgets.charts.canvas import truncate_line

FILL_CHAR, REST_CHAR = "█", "░"
ENTRY_GAP = 2  # cells between two entries of the legend


@dataclass(frozen=True)
class RecipePart:
    """A part of a recipe: an anchor by its index in the bank, or the task adapter (`number` None).

    A part with `weight` None has no segment.
    """

    number: int | None
    name: str
    weight: float | None
    weight_text: str

    @property
    def sign(self) -> str:
        """The character that marks the part in the bar and the legend."""
        return REST_CHAR if self.number is None else anchor_letter(self.number)

    @property
    def style(self) -> str:
        """The part's colour; the task adapter is grey."""
        return "dim" if self.number is None else anchor_colour(self.number)


def recipe_lines(parts: Sequence[RecipePart], width: int) -> list[Text]:
    """The bar in `width` cells, if any part has a weight, and below it the legend."""
    bar = Text(no_wrap=True, overflow="crop", end="")
    weighed = [part for part in parts if part.weight]
    for part, cells in zip(
        weighed, proportional_widths([abs(part.weight or 0.0) for part in weighed], width), strict=True
    ):
        rest = REST_CHAR if part.number is None else FILL_CHAR
        bar.append((part.sign + rest * (cells - 1))[:cells], part.style)
    lines = [bar] if weighed else []
    line = Text(no_wrap=True, overflow="crop", end="")
    for part in parts:
        entry = truncate_line(f"{part.sign} {part.name} {part.weight_text}", width)
        if line and line.cell_len + ENTRY_GAP + cell_len(entry) > width:
            lines.append(line)
            line = Text(no_wrap=True, overflow="crop", end="")
        line.append(" " * ENTRY_GAP if line else "")
        line.append(entry[:1], f"bold {part.style}")
        line.append(entry[1:], "" if part.weight else "dim")
    return [*lines, line] if line else lines


def proportional_widths(values: Sequence[float], width: int) -> list[int]:
    """Segment widths in proportion to the values, `width` in all, each at least one cell if there are enough."""
    total = sum(values)
    if not total or width < len(values):
        return [1] * min(len(values), max(width, 0)) + [0] * max(0, len(values) - max(width, 0))
    exact = [(width - len(values)) * value / total for value in values]
    cells = [1 + int(value) for value in exact]
    by_remainder = sorted(range(len(values)), key=lambda n: int(exact[n]) - exact[n])
    for n in by_remainder[: width - sum(cells)]:
        cells[n] += 1
    return cells


@dataclass(frozen=True)
class RecipeBar:
    """The bar of a recipe with a legend below it, as wide as the widget that shows it."""

    parts: Sequence[RecipePart]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        """The bar and the legend at the current width."""
        yield Text("\n").join(recipe_lines(self.parts, options.max_width))
