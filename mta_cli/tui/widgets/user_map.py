"""A map of people in the terminal: everybody as a dot, anchors as letters, one person and their neighbours on top.

Draws what `pipeline.people_map` computed, again at every size. Reads nothing and computes no profile.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase, digits
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive

from mta_cli.tui.widgets.braille import ACROSS, DOWN, dots
from mta_cli.tui.widgets.canvas import Sheet, fitted
from mta_cli.tui.widgets.plot import Plot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mta_cli.pipeline.bank.user_map import PeopleMap

LETTERS = ascii_uppercase + ascii_lowercase + digits
UNLETTERED, PERSON, NEIGHBOUR = "◆", "●", "○"
STYLES = ("few", "some", "many", "most")
NEAR = 2.5  # cells within which a click means somebody
CROWDED = 2.0  # a cell is the selected anchor's where its people are so many times more frequent than everywhere
AHEAD = 2.0  # how much more it costs an arrow key to go aside than ahead


def letter(number: int) -> str:
    """The sign of a bank's anchor, by its place in the bank."""
    return LETTERS[number] if number < len(LETTERS) else UNLETTERED


@dataclass(frozen=True)
class Lit:
    """The person whom the map is about: user id, name, and the ids of their neighbours."""

    user_id: int
    name: str
    neighbours: Collection[int] = ()


class PeopleMapView(Plot, can_focus=True):
    """The map. `selected` is the place of an anchor in the bank; its people stand out."""

    HELP = (
        "The map shows everybody with a profile, laid out along the two directions in which profiles differ most: the "
        "more people in a place, the brighter. Letters are anchors; those nearest to the selected one are coloured.\n"
        "Arrows go to the next anchor that way. A click on a letter selects it, on a dot chooses that person."
    )
    PART = "people-map"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"people-map--{name}" for name in (*STYLES, "own", "anchor", "selected", "person", "neighbour", "words")
    }
    DEFAULT_CSS = """
    PeopleMapView {
        height: 1fr;
        min-height: 5;
        border: round $panel;
        & > .people-map--few { color: $foreground 35%; }
        & > .people-map--some { color: $foreground 55%; }
        & > .people-map--many { color: $foreground 75%; }
        & > .people-map--most { color: $foreground; }
        & > .people-map--own { color: $primary-lighten-2; }
        & > .people-map--anchor { color: $warning; text-style: bold; }
        & > .people-map--selected { color: $warning; text-style: bold reverse; }
        & > .people-map--person { color: $success; text-style: bold; }
        & > .people-map--neighbour { color: $success; }
        & > .people-map--words { color: $text-muted; }
        &:focus { border: round $primary; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            key,
            f"toward({across}, {down})",
            "Next anchor" if key == "left" else "",
            id=f"map.{key}",
            show=False,
            key_display="←↑↓→",
            tooltip="Select the next anchor that way",
        )
        for key, across, down in (("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1))
    ]

    selected: reactive[int | None] = reactive(None)

    class AnchorSelected(Message):
        """Another anchor is selected, by its place in the bank."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    class PersonClicked(Message):
        """Somebody's dot was clicked."""

        def __init__(self, user_id: int) -> None:
            super().__init__()
            self.user_id = user_id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._map: PeopleMap | None = None
        self._lit: Lit | None = None
        self._waiting = ""

    def show(self, drawn: PeopleMap | None, lit: Lit | None = None, *, waiting: str = "") -> None:
        """Draw a map, or say what is waited for while there is none."""
        self._map, self._lit, self._waiting = drawn, lit, waiting
        if drawn is None or (self.selected is not None and self.selected >= len(drawn.landmarks)):
            self.set_reactive(PeopleMapView.selected, None)
        self.refresh()

    def render(self) -> Text:
        """The map and its legend."""
        return self.painted(self.sheet(*self.content_size))

    def sheet(self, width: int, height: int) -> Sheet:
        """What is drawn on so many cells."""
        sheet = Sheet(width, height)
        if self._map is None or not len(self._map.people) or width < 4 or height < 3:
            words = self._waiting if self._map is None else "Nobody has a profile yet."
            sheet.put(1, height // 2, fitted(words, width - 2), "words")
            return sheet
        self._put_people(sheet, self._map, width, height - 1)
        self._put_marks(sheet, self._map, width, height - 1)
        self._put_legend(sheet, self._map, height - 1)
        return sheet

    def action_toward(self, across: int, down: int) -> None:
        """Select the nearest anchor in a direction; the first one when none is."""
        places = self._anchor_cells(*self._plot_size())
        if self.selected not in places:
            if places:
                self._select(next(iter(places)))
            return
        x, y = places[self.selected]
        costs = {}
        for number, (other_x, other_y) in places.items():
            aside_x, aside_y = other_x - x, (other_y - y) * 2  # a cell is twice as high as it is wide
            ahead = aside_x * across + aside_y * down
            if ahead > 0:
                costs[number] = ahead + AHEAD * (abs(aside_x * down) + abs(aside_y * across))
        if costs:
            self._select(min(costs, key=lambda number: costs[number]))

    def on_click(self, event: events.Click) -> None:
        """Select the anchor, or name the person, that is meant."""
        import numpy as np

        offset = event.get_content_offset(self)
        if offset is None or self._map is None or not len(self._map.people):
            return
        anchors = {
            n: math.hypot(offset.x - x, 2 * (offset.y - y))
            for n, (x, y) in self._anchor_cells(*self._plot_size()).items()
        }
        if anchors and min(anchors.values()) <= 1:
            self._select(min(anchors, key=lambda number: anchors[number]))
            return
        columns, rows = self._dots(self._map.places, *self._plot_size())
        apart = np.hypot(columns / ACROSS - 0.25 - offset.x, 2 * (rows / DOWN - 0.375 - offset.y))  # in cell widths
        if float(apart.min()) <= NEAR:
            self.post_message(self.PersonClicked(int(self._map.people[int(apart.argmin())])))

    def watch_selected(self) -> None:
        """Draw the people of another anchor."""
        self.refresh()

    def _select(self, number: int) -> None:
        if number != self.selected:
            self.selected = number
            self.post_message(self.AnchorSelected(number))

    def _plot_size(self) -> tuple[int, int]:
        return max(self.content_size.width, 1), max(self.content_size.height - 1, 1)

    def _dots(
        self, places: NDArray[np.float32], width: int, height: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which dot each place falls on, from the top left; the map fills the plot but for a cell at every side."""
        import numpy as np

        assert self._map is not None
        low, high = self._map.places.min(axis=0), self._map.places.max(axis=0)
        part = np.where(high > low, (places - low) / np.where(high > low, high - low, 1), 0.5)
        part = np.clip(part, 0, 1)
        columns = ACROSS + np.rint(part[:, 0] * max((width - 2) * ACROSS - 1, 0)).astype(int)
        rows = DOWN + np.rint((1 - part[:, 1]) * max((height - 2) * DOWN - 1, 0)).astype(int)
        return np.minimum(columns, width * ACROSS - 1), np.minimum(rows, height * DOWN - 1)

    def _cells(self, places: Sequence[tuple[float, float]], width: int, height: int) -> list[tuple[int, int]]:
        import numpy as np

        columns, rows = self._dots(np.array(places, np.float32).reshape(-1, 2), width, height)
        return list(zip((columns // ACROSS).tolist(), (rows // DOWN).tolist(), strict=True))

    def _anchor_cells(self, width: int, height: int) -> dict[int, tuple[int, int]]:
        """The cell of every anchor that has a place."""
        if self._map is None or not len(self._map.people):
            return {}
        placed = [(n, mark.place) for n, mark in enumerate(self._map.landmarks) if mark.place is not None]
        cells = self._cells([place for _, place in placed], width, height)
        return {number: cell for (number, _), cell in zip(placed, cells, strict=True)}

    def _put_people(self, sheet: Sheet, drawn: PeopleMap, width: int, height: int) -> None:
        import numpy as np

        columns, rows = self._dots(drawn.places, width, height)
        all_of_them = dots(columns, rows, width, height)
        strong = np.zeros(all_of_them.counts.shape, bool)
        if self.selected is not None:
            mine = drawn.nearest == self.selected
            own = dots(columns[mine], rows[mine], width, height).counts
            strong = own > all_of_them.counts * min(0.5, CROWDED * float(mine.mean()))
        levels = all_of_them.levels()
        for y, x in np.argwhere(levels >= 0).tolist():
            sheet.dot(x, y, all_of_them.char(x, y), "own" if strong[y, x] else STYLES[levels[y, x]])

    def _put_marks(self, sheet: Sheet, drawn: PeopleMap, width: int, height: int) -> None:
        """Neighbours below anchors, the person and the selected anchor on top of all."""
        lit = self._lit
        if lit is not None:
            near = [place for place in map(drawn.place, lit.neighbours) if place is not None]
            for x, y in self._cells(near, width, height):
                sheet.put(x, y, NEIGHBOUR, "neighbour")
        cells = self._anchor_cells(width, height)
        for number in sorted(cells, key=lambda number: number == self.selected):
            style = "selected" if number == self.selected else "anchor"
            own = lit is not None and drawn.landmarks[number].anchor.user_id == lit.user_id
            sheet.put(*cells[number], letter(number), "person" if own else style)
        place = drawn.place(lit.user_id) if lit is not None else None
        if lit is not None and place is not None and lit.user_id not in (m.anchor.user_id for m in drawn.landmarks):
            sheet.put(*self._cells([place], width, height)[0], PERSON, "person")

    def _put_legend(self, sheet: Sheet, drawn: PeopleMap, y: int) -> None:
        """One line: who is lit, how many there are, and how much of the difference between people is seen."""
        x = 0
        if self._lit is not None:
            if drawn.place(self._lit.user_id) is None:
                x = sheet.put(x, y, f"{fitted(self._lit.name, 20)} has no profile  ", "words")
            else:
                x = sheet.put(x, y, f"{PERSON} ", "person")
                x = sheet.put(x, y, f"{fitted(self._lit.name, 20)}  ", "words")
                if self._lit.neighbours:
                    x = sheet.put(x, y, f"{NEIGHBOUR} ", "neighbour")
                    x = sheet.put(x, y, "nearest  ", "words")
        if drawn.landmarks:
            last = min(len(drawn.landmarks), len(LETTERS)) - 1
            x = sheet.put(x, y, "A" if last == 0 else f"A…{letter(last)}", "anchor")
            x = sheet.put(x, y, " anchors  ", "words")
        seen = f"{len(drawn.people):,} people, {100 * sum(drawn.share):.0f} % of variance"
        sheet.put(x, y, fitted(seen, max(sheet.width - x, 0)), "words")
