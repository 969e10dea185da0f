"""A table of any length that keeps only the rows near the visible ones in memory.

Rows are fetched asynchronously in pages when they become visible; a few pages are cached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events, work
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from mta_cli.tui.widgets.charts.canvas import truncate_line

PAGE_ROWS, MAX_CACHED_PAGES = 100, 4  # rows of a page, and cached pages
LOADING_TEXT = "…"
ASCENDING_ARROW, DESCENDING_ARROW = "▲", "▼"

FetchRows = Callable[[int, int], Awaitable[Sequence[Any]]]
"""Fetches rows: (index of the first row, maximum number) → rows."""


@dataclass(frozen=True)
class Column:
    """A column of `width` cells; a column that `grows` takes the remaining width.

    In a narrow table, columns with the highest `drop_priority` are left out first; 0 is never left out.
    """

    key: str
    title: str
    width: int
    align_right: bool = False
    grows: bool = False
    drop_priority: int = 0
    sortable: bool = True


@dataclass(frozen=True)
class Cell:
    """The text of a cell. `kind` chooses the style: good, bad, quiet, chosen, or an empty text."""

    text: str
    kind: str = ""


def layout_columns(columns: Sequence[Column], width: int) -> list[tuple[int, int, int]]:
    """The columns that fit in `width` cells, as (index, first cell, cells), each after one blank."""
    shown = list(range(len(columns)))
    while sum(columns[n].width + 1 for n in shown) > width and (most := max(columns[n].drop_priority for n in shown)):
        shown.remove(next(n for n in reversed(shown) if columns[n].drop_priority == most))
    spare = max(0, width - sum(columns[n].width + 1 for n in shown))
    places, x = [], 1
    for n in shown:
        cells = columns[n].width + (spare if columns[n].grows else 0)
        places.append((n, x, cells))
        x += cells + 1
    return places


class LazyTable(ScrollView, can_focus=True):
    """A table with a cursor and a fixed head row. `load_rows` sets the number of rows, which are fetched later."""

    HELP: ClassVar[str] = "Arrows, page up and down, home and end move; a click on a head sorts, a second one reverses."
    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"lazy-table--{name}" for name in ("head", "odd", "cursor", "cursor-away", "good", "bad", "quiet", "chosen")
    }
    DEFAULT_CSS = """
    LazyTable {
        height: 1fr;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        background: $surface;
        color: $foreground;
    }
    LazyTable > .lazy-table--head { background: $panel; color: $text-muted; text-style: bold; }
    LazyTable > .lazy-table--odd { background: $surface-lighten-1 40%; }
    LazyTable > .lazy-table--cursor {
        background: $block-cursor-background;
        color: $block-cursor-foreground;
        text-style: bold;
    }
    LazyTable > .lazy-table--cursor-away { background: $block-cursor-blurred-background; color: $foreground; }
    LazyTable:nocolor > .lazy-table--cursor { text-style: bold reverse; }
    LazyTable:nocolor > .lazy-table--cursor-away { text-style: reverse; }
    LazyTable > .lazy-table--good { color: $text-success; }
    LazyTable > .lazy-table--bad { color: $text-error; }
    LazyTable > .lazy-table--quiet { color: $text-muted; }
    LazyTable > .lazy-table--chosen { color: $text-accent; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", id="table.up", show=False, tooltip="The row above"),
        Binding("down,j", "move(1)", "Down", id="table.down", show=False, tooltip="The row below"),
        Binding("pageup", "move_page(-1)", "Page up", id="table.pageup", show=False, tooltip="A screen up"),
        Binding("pagedown", "move_page(1)", "Page down", id="table.pagedown", show=False, tooltip="A screen down"),
        Binding("home", "first", "First", id="table.home", show=False, tooltip="The first row"),
        Binding("end", "last", "Last", id="table.end", show=False, tooltip="The last row"),
        Binding("enter", "select", "Select", id="table.enter", tooltip="Select this row"),
    ]

    cursor: reactive[int] = reactive(0, repaint=False)

    class Highlighted(Message):
        """Sent when the cursor is on another row and that row is loaded."""

        def __init__(self, place: int, row: Any) -> None:
            super().__init__()
            self.place, self.row = place, row

    class Selected(Highlighted):
        """Sent when the row under the cursor was chosen by Enter or a double click."""

    class SortRequested(Message):
        """Sent when the head of a sortable column was clicked."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class FetchFailed(Message):
        """Sent when rows could not be fetched; no more are fetched until the next `load_rows`."""

        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

    def __init__(
        self,
        columns: Sequence[Column],
        fetch: FetchRows,
        cells: Callable[[Any], Sequence[Cell]],
        *,
        id: str | None = None,
    ) -> None:
        super().__init__(id=id)
        self.columns, self._fetch, self._cells = tuple(columns), fetch, cells
        self.row_count = 0
        self.sorted_by: tuple[str, bool] = ("", False)
        self._pages: dict[int, Sequence[Any]] = {}
        self._load_number = 0
        self._fetching_pages, self._fetch_failed = False, False
        self._last_highlighted: tuple[int, Any] | None = None

    @property
    def cursor_row(self) -> Any | None:
        """The row under the cursor; None while it is not loaded."""
        return self.row_at(self.cursor)

    def row_at(self, place: int) -> Any | None:
        """The row at an index, if it is in memory."""
        page, within = divmod(place, PAGE_ROWS)
        rows = self._pages.get(page, ())
        return rows[within] if 0 <= within < len(rows) else None

    async def load_rows(self, count: int, cursor: int = 0, *, sorted_by: tuple[str, bool] = ("", False)) -> None:
        """Show `count` new rows with the cursor on one; the old rows stay visible until the new ones are loaded."""
        self._load_number += 1
        load, cursor = self._load_number, max(0, min(cursor, count - 1))
        pages = {}
        if count:
            page = cursor // PAGE_ROWS
            pages[page] = await self._fetch(page * PAGE_ROWS, PAGE_ROWS)
        if load != self._load_number:
            return
        self._pages, self.row_count, self.sorted_by = pages, count, sorted_by
        self._last_highlighted, self._fetch_failed = None, False
        self.virtual_size = Size(0, count + 1)
        self.set_reactive(LazyTable.cursor, cursor)
        self._scroll_to_cursor()
        self.refresh()
        self._post_highlighted()

    def render_line(self, y: int) -> Strip:
        """The line `y` of the table: the head or a row."""
        width = self.scrollable_content_region.width
        if y == 0:
            return self._head(width)
        place = self.scroll_offset.y + y - 1
        base = self.rich_style
        if place >= self.row_count:
            return Strip.blank(width, base)
        row = self.row_at(place)
        if row is None and place // PAGE_ROWS in self._pages:  # the page has fewer rows than announced
            return Strip.blank(width, base)
        if row is None:
            self._request_missing_pages()
            return Strip([Segment(f" {LOADING_TEXT}", base + self._style("quiet"))]).adjust_cell_length(width, base)
        on = place == self.cursor
        if on:
            base += self._style("cursor" if self.has_focus else "cursor-away")
        elif place % 2:
            base += self._style("odd")
        return self._render_cells(self._cells(row), width, base, plain=on and self.has_focus)

    def validate_cursor(self, cursor: int) -> int:
        """Clip the cursor to the rows."""
        return max(0, min(cursor, self.row_count - 1))

    def watch_cursor(self, old: int, new: int) -> None:
        """Keep the cursor in view."""
        self._scroll_to_cursor()
        self.refresh()
        self._post_highlighted()

    def on_focus(self) -> None:
        """Draw the brighter cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Draw the dimmer cursor."""
        self.refresh()

    def on_resize(self) -> None:
        """Lay out the columns again."""
        self._scroll_to_cursor()

    def on_click(self, event: events.Click) -> None:
        """Sort by a clicked head, or move the cursor to a clicked row; a double click selects the row."""
        spot = event.get_content_offset(self)
        if spot is None:
            return
        if spot.y == 0:
            width = self.scrollable_content_region.width
            places = layout_columns(self.columns, width)
            hit = next((n for n, x, cells in places if x - 1 <= spot.x < x + cells), None)
            if hit is not None and self.columns[hit].sortable:
                self.post_message(self.SortRequested(self.columns[hit].key))
            return
        place = self.scroll_offset.y + spot.y - 1
        if place < self.row_count:
            self.cursor = place
            if event.chain == 2:
                self.action_select()

    def action_move(self, rows: int) -> None:
        """Move the cursor up or down."""
        self.cursor += rows

    def action_move_page(self, screens: int) -> None:
        """Move the cursor by screens."""
        self.cursor += screens * max(1, self._visible_row_count - 1)

    def action_first(self) -> None:
        """Move the cursor to the top."""
        self.cursor = 0

    def action_last(self) -> None:
        """Move the cursor to the end."""
        self.cursor = self.row_count - 1

    def action_select(self) -> None:
        """Select the row under the cursor."""
        if (row := self.cursor_row) is not None:
            self.post_message(self.Selected(self.cursor, row))

    @property
    def _visible_row_count(self) -> int:
        return max(1, self.scrollable_content_region.height - 1)

    def _scroll_to_cursor(self) -> None:
        top = max(0, min(self.scroll_offset.y, self.row_count - self._visible_row_count))
        top = min(max(top, self.cursor - self._visible_row_count + 1), self.cursor)
        if top != self.scroll_offset.y:
            self.scroll_to(y=top, animate=False, force=True)

    def _post_highlighted(self) -> None:
        if (row := self.cursor_row) is not None and self._last_highlighted != (self.cursor, row):
            self._last_highlighted = (self.cursor, row)
            self.post_message(self.Highlighted(self.cursor, row))

    def _request_missing_pages(self) -> None:
        if not self._fetching_pages and not self._fetch_failed:
            self._fetching_pages = True
            self.call_later(self._fetch_visible_pages)

    @work(group="rows", exit_on_error=False)
    async def _fetch_visible_pages(self) -> None:
        """Fetch missing pages, always the ones that are visible by then, so that pages scrolled past are skipped."""
        try:
            while (page := next((page for page in self._visible_pages() if page not in self._pages), None)) is not None:
                load = self._load_number
                rows = await self._fetch(page * PAGE_ROWS, PAGE_ROWS)
                if load == self._load_number:
                    self._pages[page] = rows
                    self._evict_far_pages()
                    self.refresh()
                    self._post_highlighted()
        except Exception as error:
            self._fetch_failed = True
            self.post_message(self.FetchFailed(error))
        finally:
            self._fetching_pages = False

    def _visible_pages(self) -> range:
        """The pages of the visible rows. After scrolling with the wheel, the cursor may be on another page."""
        top = self.scroll_offset.y
        last = min(top + self._visible_row_count, self.row_count) - 1
        return range(top // PAGE_ROWS, last // PAGE_ROWS + 1)

    def _evict_far_pages(self) -> None:
        middle = self.scroll_offset.y // PAGE_ROWS
        for page in sorted(self._pages, key=lambda page: abs(page - middle))[MAX_CACHED_PAGES:]:
            del self._pages[page]

    def _head(self, width: int) -> Strip:
        style = self.rich_style + self._style("head")
        by, descending = self.sorted_by
        arrow = DESCENDING_ARROW if descending else ASCENDING_ARROW
        titles = [Cell(column.title + (arrow if column.key == by else "")) for column in self.columns]
        return self._render_cells(titles, width, style)

    def _render_cells(self, cells: Sequence[Cell], width: int, base: Style, *, plain: bool = False) -> Strip:
        """The cells of a row at their columns. With `plain`, cells have no own colours, which may be unreadable at the
        cursor.
        """
        segments, at = [], 0
        for number, x, room in layout_columns(self.columns, width):
            cell = cells[number]
            text = truncate_line(cell.text, room)
            blank = " " * (room - cell_len(text))
            text = blank + text if self.columns[number].align_right else text + blank
            style = base if plain or not cell.kind else base + self._style(cell.kind)
            segments += [Segment(" " * (x - at), base), Segment(text, style)]
            at = x + room
        return Strip(segments).adjust_cell_length(width, base)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"lazy-table--{name}", partial=True)
