"""A map of all users: dots for users, letters for anchors, and on top the selected user with neighbours and recipe.

Draws the result of `pipeline.bank.user_map`, again at every size. Reads nothing and computes no profile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive

from mta_cli.tui.widgets.charts.anchor_colours import ANCHOR_COLOURS, ANCHOR_LETTERS, anchor_letter
from mta_cli.tui.widgets.charts.braille import DOTS_PER_CELL_X, DOTS_PER_CELL_Y, braille_grid
from mta_cli.tui.widgets.charts.canvas import Canvas, truncate_line
from mta_cli.tui.widgets.charts.plot import Plot
from mta_cli.tui.widgets.charts.recipe_bar import RecipePart

if TYPE_CHECKING:
    from mta_cli.pipeline.bank.user_map import UserMap

USER_CHAR, NEIGHBOUR_CHAR = "●", "○"
DENSITY_STYLES = ("few", "some", "many", "most")
SPARSE_CELLS_PER_USER = 8  # a map with at least this many cells per user has larger dots
SPARSE_CHARS = "⠶⠿⣿"  # one user, two, more
LINK_SHARES = {"strong": 0.6, "medium": 0.25, "faint": 0.0}  # minimum share of the recipe's largest weight
COLOUR_STYLES = {
    "anchor-{}": "color: {}; text-style: bold;",
    "selected-{}": "color: {}; text-style: bold reverse;",
    "near-{}": "color: {} 55%;",
    "name-{}": "color: {} 75%;",
    "link-{}-strong": "color: {};",
    "link-{}-medium": "color: {} 75%;",
    "link-{}-faint": "color: {} 55%;",
}
"""Styles in an anchor's colour: its letter and name, the users nearest to it, and the lines from a user with it in the
recipe.
"""
ANCHOR_STYLES = {
    name.format(number): css.format(colour)
    for name, css in COLOUR_STYLES.items()
    for number, colour in enumerate(ANCHOR_COLOURS)
}
MIN_LABEL_WIDTH = 50  # the minimum width of a map with names
MAX_LABEL_CELLS = 12
CLICK_RADIUS_CELLS = 2.5  # cells within which a click selects a user
# A cell is drawn in the selected anchor's colour if the share of its users there is this many times the overall share.
MIN_DENSITY_RATIO = 2.0
SIDEWAYS_COST = 2.0  # the cost of sideways distance for an arrow key, relative to distance ahead


@dataclass(frozen=True)
class HighlightedUser:
    """The user drawn on top of the map: id, name, ids of similar users, and the recipe, largest weight first."""

    user_id: int
    name: str
    neighbours: Collection[int] = ()
    recipe: Sequence[RecipePart] = ()


class UserMapView(Plot, can_focus=True):
    """The map. `selected_anchor` is the index of an anchor in the bank; its users are coloured."""

    HELP = (
        "The map shows every user with a profile along the two main directions of all profiles. Letters are anchors. "
        "With few users, each has the colour of the nearest anchor. With many, brighter means more users, and only the "
        "users nearest to the selected anchor are coloured.\n"
        "Lines go from the selected user to the anchors of their recipe: a double line to the largest weights, a "
        "dotted one to small ones. The last line names the weights; ░ is the task adapter's share.\n"
        "Arrow keys go to the next anchor in that direction. A click on a letter selects the anchor, on a dot the user."
    )
    COMPONENT_PREFIX = "user-map"
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"user-map--{name}" for name in (*DENSITY_STYLES, *ANCHOR_STYLES, "anchor", "user", "neighbour", "words")
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
        & > .user-map--anchor {{ color: $warning; text-style: bold; }}
        & > .user-map--user {{ color: $success; text-style: bold; }}
        & > .user-map--neighbour {{ color: $success; }}
        & > .user-map--words {{ color: $text-muted; }}
        &:focus {{ border: round $primary; }}
        {"".join(f"& > .user-map--{name} {{ {css} }}" for name, css in ANCHOR_STYLES.items())}
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
        """Sent when another anchor was selected; `number` is its index in the bank."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    class UserClicked(Message):
        """Sent when a user's dot was clicked."""

        def __init__(self, user_id: int) -> None:
            super().__init__()
            self.user_id = user_id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._user_map: UserMap | None = None
        self._highlighted_user: HighlightedUser | None = None
        self._waiting_text = ""

    def show_map(self, user_map: UserMap | None, lit: HighlightedUser | None = None, *, waiting: str = "") -> None:
        """Draw a map, or show `waiting` while there is none."""
        self._user_map, self._highlighted_user, self._waiting_text = user_map, lit, waiting
        if user_map is None or (self.selected_anchor is not None and self.selected_anchor >= len(user_map.map_anchors)):
            self.set_reactive(UserMapView.selected_anchor, None)
        self.refresh()

    def render(self) -> Text:
        """The map and its legend."""
        return self.render_canvas(self.draw_map(*self.content_size))

    def draw_map(self, width: int, height: int) -> Canvas:
        """The map and its legend on a canvas of this size."""
        canvas = Canvas(width, height)
        if self._user_map is None or not len(self._user_map.user_ids) or width < 4 or height < 3:
            words = self._waiting_text if self._user_map is None else "No user has a profile yet."
            canvas.write_text(1, height // 2, truncate_line(words, width - 2), "words")
            return canvas
        self._draw_links(canvas, self._user_map, width, height - 1)
        self._draw_users(canvas, self._user_map, width, height - 1)
        self._draw_markers(canvas, self._user_map, width, height - 1)
        self._draw_legend(canvas, self._user_map, height - 1)
        return canvas

    def action_select_toward(self, across: int, down: int) -> None:
        """Select the nearest anchor in a direction, or the first one if none is selected."""
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
        """Select the clicked anchor, or send a message about the clicked user."""
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
        """Draw the map again, with the users of the selected anchor coloured."""
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
        """The braille dot (column, row) of each point, from the top left; one cell at each edge stays free."""
        assert self._user_map is not None
        low, high = self._user_map.points.min(axis=0), self._user_map.points.max(axis=0)
        part = np.where(high > low, (places - low) / np.where(high > low, high - low, 1), 0.5)
        part = np.clip(part, 0, 1)
        columns = DOTS_PER_CELL_X + np.rint(part[:, 0] * max((width - 2) * DOTS_PER_CELL_X - 1, 0)).astype(int)
        rows = DOTS_PER_CELL_Y + np.rint((1 - part[:, 1]) * max((height - 2) * DOTS_PER_CELL_Y - 1, 0)).astype(int)
        return np.minimum(columns, width * DOTS_PER_CELL_X - 1), np.minimum(rows, height * DOTS_PER_CELL_Y - 1)

    def _cell_positions(self, places: Sequence[tuple[float, float]], width: int, height: int) -> list[tuple[int, int]]:
        columns, rows = self._dot_positions(np.array(places, np.float32).reshape(-1, 2), width, height)
        return list(zip((columns // DOTS_PER_CELL_X).tolist(), (rows // DOTS_PER_CELL_Y).tolist(), strict=True))

    def _anchor_cells(self, width: int, height: int) -> dict[int, tuple[int, int]]:
        if self._user_map is None or not len(self._user_map.user_ids):
            return {}
        placed = [(n, mark.point) for n, mark in enumerate(self._user_map.map_anchors) if mark.point is not None]
        cells = self._cell_positions([place for _, place in placed], width, height)
        return {number: cell for (number, _), cell in zip(placed, cells, strict=True)}

    def _draw_users(self, canvas: Canvas, user_map: UserMap, width: int, height: int) -> None:
        columns, rows = self._dot_positions(user_map.points, width, height)
        if len(user_map.user_ids) * SPARSE_CELLS_PER_USER <= width * height:
            self._draw_few_users(canvas, user_map, columns // DOTS_PER_CELL_X, rows // DOTS_PER_CELL_Y)
            return
        all_of_them = braille_grid(columns, rows, width, height)
        strong, own_style = np.zeros(all_of_them.counts.shape, bool), ""
        if self.selected_anchor is not None:
            mine = user_map.nearest_anchor == self.selected_anchor
            own = braille_grid(columns[mine], rows[mine], width, height).counts
            strong = own > all_of_them.counts * min(0.5, MIN_DENSITY_RATIO * float(mine.mean()))
            own_style = anchor_style("anchor", self.selected_anchor)
        levels = all_of_them.density_levels()
        for y, x in np.argwhere(levels >= 0).tolist():
            canvas.write_char(x, y, all_of_them.char(x, y), own_style if strong[y, x] else DENSITY_STYLES[levels[y, x]])

    def _draw_few_users(
        self, canvas: Canvas, user_map: UserMap, columns: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> None:
        cells = list(zip(columns.tolist(), rows.tolist(), strict=True))
        users = Counter(cells)
        for cell, nearest in zip(cells, user_map.nearest_anchor.tolist(), strict=True):
            part = "anchor" if nearest == self.selected_anchor else "near"
            style = anchor_style(part, nearest) if nearest >= 0 else DENSITY_STYLES[1]
            canvas.write_char(*cell, SPARSE_CHARS[min(users[cell], len(SPARSE_CHARS)) - 1], style)

    def _draw_links(self, canvas: Canvas, user_map: UserMap, width: int, height: int) -> None:
        lit = self._highlighted_user
        here = user_map.locate_user(lit.user_id) if lit is not None else None
        weighed = [part for part in lit.recipe if part.number is not None and part.weight] if lit is not None else []
        largest = max((abs(part.weight or 0.0) for part in weighed), default=0.0)
        for part in reversed(weighed):
            there = user_map.map_anchors[part.number or 0].point
            if here is None or there is None:
                continue
            share = abs(part.weight or 0.0) / largest
            level = next(name for name, least in LINK_SHARES.items() if share >= least)
            columns, rows = self._dot_positions(np.array([here, there], np.float32), width, height)
            columns, rows = _line_dots(columns, rows, level)
            inside = (columns < width * DOTS_PER_CELL_X) & (rows < height * DOTS_PER_CELL_Y)
            line = braille_grid(columns[inside], rows[inside], width, height)
            for y, x in np.argwhere(line.counts > 0).tolist():
                canvas.write_char(x, y, line.char(x, y), f"{anchor_style('link', part.number or 0)}-{level}")

    def _draw_markers(self, canvas: Canvas, user_map: UserMap, width: int, height: int) -> None:
        """Draw neighbours, then anchors, then the user and the selected anchor on top, with names if there is room."""
        lit = self._highlighted_user
        if lit is not None:
            near = [place for place in map(user_map.locate_user, lit.neighbours) if place is not None]
            for x, y in self._cell_positions(near, width, height):
                canvas.write_text(x, y, NEIGHBOUR_CHAR, "neighbour")
        labels = list[tuple[int, int, str, str]]()
        cells = self._anchor_cells(width, height)
        for number in sorted(cells, key=lambda number: number == self.selected_anchor):
            style = anchor_style("selected" if number == self.selected_anchor else "anchor", number)
            anchor = user_map.map_anchors[number].anchor
            own = lit is not None and anchor.user_id == lit.user_id
            canvas.write_text(*cells[number], anchor_letter(number), "user" if own else style)
            labels.append((*cells[number], anchor.user or "", anchor_style("name", number)))
        place = user_map.locate_user(lit.user_id) if lit is not None else None
        if (
            lit is not None
            and place is not None
            and lit.user_id not in (m.anchor.user_id for m in user_map.map_anchors)
        ):
            ((x, y),) = self._cell_positions([place], width, height)
            canvas.write_text(x, y, USER_CHAR, "user")
            labels.insert(0, (x, y, lit.name, "user"))
        if width >= MIN_LABEL_WIDTH:
            for x, y, name, style in labels:
                _write_label(canvas, x, y, name, style)

    def _draw_legend(self, canvas: Canvas, user_map: UserMap, y: int) -> None:
        """Write one line: the selected user, the symbols, the number of users, and the explained variance."""
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
        recipe = self._highlighted_user.recipe if self._highlighted_user is not None else ()
        for part in recipe:
            entry = f"{part.sign} {part.weight_text}  "
            if x + len(entry) <= canvas.width:
                x = canvas.write_text(
                    x, y, part.sign, "words" if part.number is None else anchor_style("anchor", part.number)
                )
                x = canvas.write_text(x, y, entry[1:], "words")
        if user_map.map_anchors and not recipe:
            last = min(len(user_map.map_anchors), len(ANCHOR_LETTERS)) - 1
            x = canvas.write_text(x, y, "A" if last == 0 else f"A…{anchor_letter(last)}", "anchor")
            x = canvas.write_text(x, y, " anchors  ", "words")
        seen = f"{len(user_map.user_ids):,} users, {100 * sum(user_map.explained_variance):.0f} % of variance"
        canvas.write_text(x, y, truncate_line(seen, max(canvas.width - x, 0)), "words")


def anchor_style(part: str, number: int) -> str:
    """The name of a style in an anchor's colour, by its index in the bank."""
    return f"{part}-{number % len(ANCHOR_COLOURS)}"


def _line_dots(
    columns: NDArray[np.int64], rows: NDArray[np.int64], level: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The braille dots of a line: two lines if `level` is strong, every third dot if faint."""
    steps = int(max(abs(columns[1] - columns[0]), abs(rows[1] - rows[0]))) + 1
    line_columns = np.rint(np.linspace(columns[0], columns[1], steps)).astype(int)
    line_rows = np.rint(np.linspace(rows[0], rows[1], steps)).astype(int)
    if level == "faint":
        return line_columns[::3], line_rows[::3]
    if level == "strong":
        flat = abs(columns[1] - columns[0]) >= abs(rows[1] - rows[0])
        beside_columns, beside_rows = (line_columns, line_rows + 1) if flat else (line_columns + 1, line_rows)
        return np.concatenate([line_columns, beside_columns]), np.concatenate([line_rows, beside_rows])
    return line_columns, line_rows


def _write_label(canvas: Canvas, x: int, y: int, name: str, style: str) -> None:
    """Write a name beside a cell, or above or below it, where there is blank space; else leave it out."""
    label = truncate_line(name, MAX_LABEL_CELLS)
    cells = cell_len(label)
    middle = max(1, min(x - cells // 2, canvas.width - cells - 1))
    for left, row in ((x + 2, y), (x - cells - 1, y), (middle, y - 1), (middle, y + 1)):
        # the last row is the legend
        if label and row < canvas.height - 1 and canvas.is_blank(left - 1, row, cells + 2):
            canvas.write_text(left, row, label, style)
            return
