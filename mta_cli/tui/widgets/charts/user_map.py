"""A map of all users: each one a dot, anchors as letters, the selected user and their neighbours on top.

Draws what `pipeline.bank.user_map` computed, again at every size. Reads nothing and computes no profile.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive

from mta_cli.tui.widgets.charts.anchor_colours import ANCHOR_COLOURS, ANCHOR_LETTERS, anchor_letter
from mta_cli.tui.widgets.charts.braille import DOTS_PER_CELL_X, DOTS_PER_CELL_Y, braille_grid
from mta_cli.tui.widgets.charts.canvas import Canvas, truncate_line
from mta_cli.tui.widgets.charts.plot import Plot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mta_cli.pipeline.bank.user_map import UserMap

USER_CHAR, NEIGHBOUR_CHAR = "●", "○"
ANCHOR_STYLES = {f"anchor-{number}": colour for number, colour in enumerate(ANCHOR_COLOURS)}
DENSITY_STYLES = ("few", "some", "many", "most")
CLICK_RADIUS_CELLS = 2.5  # cells within which a click selects a user
MIN_DENSITY_RATIO = 2.0  # a cell is the selected anchor's where its users are this many times as frequent as overall
SIDEWAYS_COST = 2.0  # how much more it costs an arrow key to go aside than ahead


@dataclass(frozen=True)
class HighlightedUser:
    """The selected user: id, name, and the ids of the neighbours."""

    user_id: int
    name: str
    neighbours: Collection[int] = ()


class UserMapView(Plot, can_focus=True):
    """The map. `selected_anchor` is the place of an anchor in the bank; its users are coloured."""

    HELP = (
        "The map shows every user with a profile along the two main directions of all profiles; brighter means more "
        "users. Letters are anchors; the users nearest to the selected anchor are coloured.\n"
        "Arrow keys go to the next anchor in that direction. A click on a letter selects the anchor, on a dot the user."
    )
    COMPONENT_PREFIX = "user-map"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"user-map--{name}"
        for name in (*DENSITY_STYLES, "own", *ANCHOR_STYLES, "anchor", "selected", "user", "neighbour", "words")
    }
    DEFAULT_CSS = f"""
    UserMapView {{
        height: 1fr;
        min-height: 5;
        border: round $panel;
        & > .user-map--few {{ color: $foreground 35%; }}
        & > .user-map--some {{ color: $foreground 55%; }}
        & > .user-map--many {{ color: $foreground 75%; }}
        & > .user-map--most {{ color: $foreground; }}
        & > .user-map--own {{ color: $primary-lighten-2; }}
        & > .user-map--anchor {{ color: $warning; text-style: bold; }}
        & > .user-map--selected {{ color: $warning; text-style: bold reverse; }}
        & > .user-map--user {{ color: $success; text-style: bold; }}
        & > .user-map--neighbour {{ color: $success; }}
        & > .user-map--words {{ color: $text-muted; }}
        &:focus {{ border: round $primary; }}
        {"".join(f"& > .user-map--{n} {{ color: {c}; text-style: bold; }}" for n, c in ANCHOR_STYLES.items())}
    }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            key,
            f"select_toward({across}, {down})",
            "Next anchor" if key == "left" else "",
            id=f"map.{key}",
            show=False,
            key_display="←↑↓→",
            tooltip="Select the next anchor in that direction",
        )
        for key, across, down in (("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1))
    ]

    selected_anchor: reactive[int | None] = reactive(None)

    class AnchorSelected(Message):
        """Another anchor is selected, by its place in the bank."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    class UserClicked(Message):
        """A user's dot was clicked."""

        def __init__(self, user_id: int) -> None:
            super().__init__()
            self.user_id = user_id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._user_map: UserMap | None = None
        self._highlighted_user: HighlightedUser | None = None
        self._waiting_text = ""

    def show_map(self, user_map: UserMap | None, lit: HighlightedUser | None = None, *, waiting: str = "") -> None:
        """Draw a map, or say what is waited for while there is none."""
        self._user_map, self._highlighted_user, self._waiting_text = user_map, lit, waiting
        if user_map is None or (self.selected_anchor is not None and self.selected_anchor >= len(user_map.map_anchors)):
            self.set_reactive(UserMapView.selected_anchor, None)
        self.refresh()

    def render(self) -> Text:
        """The map and its legend."""
        return self.render_canvas(self.draw_map(*self.content_size))

    def draw_map(self, width: int, height: int) -> Canvas:
        """The map on so many cells."""
        canvas = Canvas(width, height)
        if self._user_map is None or not len(self._user_map.user_ids) or width < 4 or height < 3:
            words = self._waiting_text if self._user_map is None else "No user has a profile yet."
            canvas.write_text(1, height // 2, truncate_line(words, width - 2), "words")
            return canvas
        self._draw_users(canvas, self._user_map, width, height - 1)
        self._draw_markers(canvas, self._user_map, width, height - 1)
        self._draw_legend(canvas, self._user_map, height - 1)
        return canvas

    def action_select_toward(self, across: int, down: int) -> None:
        """Select the nearest anchor in a direction; the first one when none is."""
        places = self._anchor_cells(*self._plot_size())
        if self.selected_anchor not in places:
            if places:
                self._select_anchor(next(iter(places)))
            return
        x, y = places[self.selected_anchor]
        costs = {}
        for number, (other_x, other_y) in places.items():
            aside_x, aside_y = other_x - x, (other_y - y) * 2  # a cell is twice as high as it is wide
            ahead = aside_x * across + aside_y * down
            if ahead > 0:
                costs[number] = ahead + SIDEWAYS_COST * (abs(aside_x * down) + abs(aside_y * across))
        if costs:
            self._select_anchor(min(costs, key=lambda number: costs[number]))

    def on_click(self, event: events.Click) -> None:
        """Select the anchor, or name the user, that was clicked."""
        import numpy as np

        offset = event.get_content_offset(self)
        if offset is None or self._user_map is None or not len(self._user_map.user_ids):
            return
        anchors = {
            n: math.hypot(offset.x - x, 2 * (offset.y - y))
            for n, (x, y) in self._anchor_cells(*self._plot_size()).items()
        }
        if anchors and min(anchors.values()) <= 1:
            self._select_anchor(min(anchors, key=lambda number: anchors[number]))
            return
        columns, rows = self._dot_positions(self._user_map.points, *self._plot_size())
        apart = np.hypot(
            columns / DOTS_PER_CELL_X - 0.25 - offset.x, 2 * (rows / DOTS_PER_CELL_Y - 0.375 - offset.y)
        )  # in cell widths
        if float(apart.min()) <= CLICK_RADIUS_CELLS:
            self.post_message(self.UserClicked(int(self._user_map.user_ids[int(apart.argmin())])))

    def watch_selected_anchor(self) -> None:
        """Draw the users of another anchor."""
        self.refresh()

    def _select_anchor(self, number: int) -> None:
        if number != self.selected_anchor:
            self.selected_anchor = number
            self.post_message(self.AnchorSelected(number))

    def _plot_size(self) -> tuple[int, int]:
        return max(self.content_size.width, 1), max(self.content_size.height - 1, 1)

    def _dot_positions(
        self, places: NDArray[np.float32], width: int, height: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which dot each place falls on, from the top left; the map fills the plot but for a cell at every side."""
        import numpy as np

        assert self._user_map is not None
        low, high = self._user_map.points.min(axis=0), self._user_map.points.max(axis=0)
        part = np.where(high > low, (places - low) / np.where(high > low, high - low, 1), 0.5)
        part = np.clip(part, 0, 1)
        columns = DOTS_PER_CELL_X + np.rint(part[:, 0] * max((width - 2) * DOTS_PER_CELL_X - 1, 0)).astype(int)
        rows = DOTS_PER_CELL_Y + np.rint((1 - part[:, 1]) * max((height - 2) * DOTS_PER_CELL_Y - 1, 0)).astype(int)
        return np.minimum(columns, width * DOTS_PER_CELL_X - 1), np.minimum(rows, height * DOTS_PER_CELL_Y - 1)

    def _cell_positions(self, places: Sequence[tuple[float, float]], width: int, height: int) -> list[tuple[int, int]]:
        import numpy as np

        columns, rows = self._dot_positions(np.array(places, np.float32).reshape(-1, 2), width, height)
        return list(zip((columns // DOTS_PER_CELL_X).tolist(), (rows // DOTS_PER_CELL_Y).tolist(), strict=True))

    def _anchor_cells(self, width: int, height: int) -> dict[int, tuple[int, int]]:
        """The cell of every anchor that has a place."""
        if self._user_map is None or not len(self._user_map.user_ids):
            return {}
        placed = [(n, mark.point) for n, mark in enumerate(self._user_map.map_anchors) if mark.point is not None]
        cells = self._cell_positions([place for _, place in placed], width, height)
        return {number: cell for (number, _), cell in zip(placed, cells, strict=True)}

    def _draw_users(self, canvas: Canvas, user_map: UserMap, width: int, height: int) -> None:
        import numpy as np

        columns, rows = self._dot_positions(user_map.points, width, height)
        all_of_them = braille_grid(columns, rows, width, height)
        strong = np.zeros(all_of_them.counts.shape, bool)
        if self.selected_anchor is not None:
            mine = user_map.nearest_anchor == self.selected_anchor
            own = braille_grid(columns[mine], rows[mine], width, height).counts
            strong = own > all_of_them.counts * min(0.5, MIN_DENSITY_RATIO * float(mine.mean()))
        levels = all_of_them.density_levels()
        for y, x in np.argwhere(levels >= 0).tolist():
            canvas.write_char(x, y, all_of_them.char(x, y), "own" if strong[y, x] else DENSITY_STYLES[levels[y, x]])

    def _draw_markers(self, canvas: Canvas, user_map: UserMap, width: int, height: int) -> None:
        """Neighbours below anchors; the user and the selected anchor on top."""
        lit = self._highlighted_user
        if lit is not None:
            near = [place for place in map(user_map.locate_user, lit.neighbours) if place is not None]
            for x, y in self._cell_positions(near, width, height):
                canvas.write_text(x, y, NEIGHBOUR_CHAR, "neighbour")
        cells = self._anchor_cells(width, height)
        for number in sorted(cells, key=lambda number: number == self.selected_anchor):
            style = "selected" if number == self.selected_anchor else f"anchor-{number % len(ANCHOR_STYLES)}"
            own = lit is not None and user_map.map_anchors[number].anchor.user_id == lit.user_id
            canvas.write_text(*cells[number], anchor_letter(number), "user" if own else style)
        place = user_map.locate_user(lit.user_id) if lit is not None else None
        if (
            lit is not None
            and place is not None
            and lit.user_id not in (m.anchor.user_id for m in user_map.map_anchors)
        ):
            canvas.write_text(*self._cell_positions([place], width, height)[0], USER_CHAR, "user")

    def _draw_legend(self, canvas: Canvas, user_map: UserMap, y: int) -> None:
        """One line: the selected user, the signs, the number of users, and the variance that the map shows."""
        x = 0
        if self._highlighted_user is not None:
            if user_map.locate_user(self._highlighted_user.user_id) is None:
                x = canvas.write_text(
                    x, y, f"{truncate_line(self._highlighted_user.name, 20)} has no profile  ", "words"
                )
            else:
                x = canvas.write_text(x, y, f"{USER_CHAR} ", "user")
                x = canvas.write_text(x, y, f"{truncate_line(self._highlighted_user.name, 20)}  ", "words")
                if self._highlighted_user.neighbours:
                    x = canvas.write_text(x, y, f"{NEIGHBOUR_CHAR} ", "neighbour")
                    x = canvas.write_text(x, y, "nearest  ", "words")
        if user_map.map_anchors:
            last = min(len(user_map.map_anchors), len(ANCHOR_LETTERS)) - 1
            x = canvas.write_text(x, y, "A" if last == 0 else f"A…{anchor_letter(last)}", "anchor")
            x = canvas.write_text(x, y, " anchors  ", "words")
        seen = f"{len(user_map.user_ids):,} users, {100 * sum(user_map.explained_variance):.0f} % of variance"
        canvas.write_text(x, y, truncate_line(seen, max(canvas.width - x, 0)), "words")
