"""A table of any length: what it fetches, what it holds, how it is moved and clicked, and that text stays text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.strip import Strip

from mta_cli.tui.widgets.lazy_table import MAX_CACHED_PAGES, PAGE_ROWS, Cell, Column, LazyTable, layout_columns
from tests.tui.driving import until

COLUMNS = (
    Column("name", "name", 10, grows=True),
    Column("items", "items", 6, align_right=True),
    Column("task", "task", 8, drop_priority=2, sortable=False),
    Column("bytes", "bytes", 6, align_right=True, drop_priority=1),
)


class Hall(App[None]):
    """A table alone. Its rows are numbers; every fetch is written down."""

    CSS: ClassVar[str] = "LazyTable { height: 11; }"

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[int] = []
        self.heard: list[tuple[str, Any]] = []
        self.wait: asyncio.Event | None = None
        self.error: Exception | None = None
        self.first = 0

    def compose(self) -> ComposeResult:
        yield LazyTable(COLUMNS, self.fetch, self.cells)

    async def fetch(self, offset: int, limit: int) -> Sequence[int]:
        self.fetched.append(offset)
        if self.wait is not None:
            await self.wait.wait()
        if self.error is not None:
            raise self.error
        return range(offset + self.first, offset + limit + self.first)

    def cells(self, row: int) -> Sequence[Cell]:
        return Cell(f"person {row}"), Cell(str(row)), Cell("free", "quiet"), Cell("7 B", "good" if row % 2 else "bad")

    def on_lazy_table_highlighted(self, event: LazyTable.Highlighted) -> None:
        self.heard.append(("on", (event.place, event.row)))

    def on_lazy_table_selected(self, event: LazyTable.Selected) -> None:
        self.heard.append(("chosen", event.row))

    def on_lazy_table_sort_requested(self, event: LazyTable.SortRequested) -> None:
        self.heard.append(("sort", event.key))

    def on_lazy_table_fetch_failed(self, event: LazyTable.FetchFailed) -> None:
        self.heard.append(("failed", str(event.error)))

    @property
    def table(self) -> LazyTable:
        return self.query_one(LazyTable)

    def lines(self) -> list[str]:
        return [line(self.table.render_line(y)) for y in range(self.table.size.height)]


def line(strip: Strip) -> str:
    return strip.text.rstrip()


@asynccontextmanager
async def hall(count: int = 1_000_000, cursor: int = 0, size: tuple[int, int] = (60, 12)) -> AsyncIterator[Any]:
    app = Hall()
    async with app.run_test(size=size) as pilot:
        await app.table.load_rows(count, cursor)
        app.table.focus()
        await quiet(app, pilot)
        yield app, pilot


async def quiet(app: Hall, pilot: Pilot[None]) -> None:
    await pilot.pause()
    await until(pilot, lambda: all(worker.is_finished for worker in app.workers))
    await pilot.pause()


async def test_a_million_rows_need_one_page() -> None:
    async with hall() as (app, _):
        assert app.fetched == [0] and sum(map(len, app.table._pages.values())) == PAGE_ROWS
        lines = app.lines()
        assert lines[0].split() == ["name", "items", "task", "bytes"]
        assert lines[1].split() == ["person", "0", "0", "free", "7", "B"] and lines[10].split()[1] == "9"
        assert app.heard == [("on", (0, 0))]


async def test_keys_move_and_the_rows_follow() -> None:
    async with hall() as (app, pilot):
        await pilot.press("down", "down", "up")
        assert app.table.cursor == 1
        await pilot.press("pagedown")
        assert app.table.cursor == 10 and line(app.table.render_line(10)).split()[1] == "10"
        await pilot.press("end")
        await quiet(app, pilot)
        assert app.heard[-1] == ("on", (999_999, 999_999)) and line(app.table.render_line(10)).split()[1] == "999999"
        await pilot.press("down", "pageup")
        assert app.table.cursor == 999_990
        await pilot.press("home", "up")
        await quiet(app, pilot)
        assert app.heard[-1] == ("on", (0, 0)) and app.table.scroll_offset.y == 0
        await pilot.press("enter")
        await quiet(app, pilot)
        assert app.heard[-1] == ("chosen", 0)


async def test_only_pages_in_view_are_fetched_and_few_are_kept() -> None:
    async with hall() as (app, pilot):
        for place in range(0, 50_000, 2_500):
            app.table.cursor = place
            await quiet(app, pilot)
        assert sum(map(len, app.table._pages.values())) == MAX_CACHED_PAGES * PAGE_ROWS
        assert app.table.cursor_row == 47_500 and len(app.fetched) <= 40


async def test_pages_that_were_scrolled_past_are_not_fetched() -> None:
    async with hall() as (app, pilot):
        app.wait = asyncio.Event()
        app.table.cursor = 10_000
        await pilot.pause()
        for place in (20_000, 30_000, 40_000):
            app.table.cursor = place
            await pilot.pause()
        assert line(app.table.render_line(10)) == " …" and app.table.cursor_row is None
        app.wait.set()
        await quiet(app, pilot)
        assert app.table.cursor_row == 40_000 and not {20_000, 30_000} & set(app.fetched)
        assert ("on", (40_000, 40_000)) in app.heard and ("on", (20_000, 20_000)) not in app.heard


async def test_what_was_shown_stays_until_new_rows_are_here() -> None:
    async with hall() as (app, pilot):
        app.wait, app.first = asyncio.Event(), 5_000
        loading = asyncio.ensure_future(app.table.load_rows(50, 20))
        await pilot.pause()
        assert app.lines()[1].split()[1] == "0"
        app.wait.set()
        await loading
        await quiet(app, pilot)
        assert app.table.row_count == 50 and app.table.cursor_row == 5_020 and app.heard[-1] == ("on", (20, 5_020))
        assert app.lines()[10].split()[1] == "5020"


async def test_rows_of_an_earlier_load_are_dropped() -> None:
    async with hall() as (app, pilot):
        app.wait = asyncio.Event()
        app.table.cursor = 10_000
        slow = asyncio.ensure_future(app.table.load_rows(7, 3))
        await pilot.pause()
        latest = asyncio.ensure_future(app.table.load_rows(9, 8))
        await pilot.pause()
        app.wait.set()
        await asyncio.gather(slow, latest)
        await quiet(app, pilot)
        assert (app.table.row_count, app.table.cursor) == (9, 8) and sum(
            map(len, app.table._pages.values())
        ) == PAGE_ROWS


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_few_rows_leave_blank_lines_and_the_cursor_within(count: int) -> None:
    async with hall(cursor=50_000) as (app, pilot):
        await app.table.load_rows(count, 50_000)
        await quiet(app, pilot)
        assert app.table.scroll_offset.y == 0 and sum(map(bool, app.lines())) == count + 1
        assert app.table.cursor == max(0, count - 1)
        await pilot.press("end", "down", "enter", "home", "up")
        await quiet(app, pilot)
        chosen = [heard for heard in app.heard if heard[0] == "chosen"]
        assert len(chosen) == min(count, 1) and app.table.cursor == 0


async def test_a_page_shorter_than_was_said_shows_what_there_is() -> None:
    async with hall(count=5) as (app, pilot):
        app.table._pages[0] = range(2)
        app.table.cursor = 4
        app.table.refresh()
        await quiet(app, pilot)
        assert app.table.cursor_row is None and [bool(text) for text in app.lines()[1:4]] == [True, True, False]
        await pilot.press("enter")
        assert ("chosen", 4) not in app.heard


async def test_the_mouse_moves_sorts_and_chooses() -> None:
    async with hall() as (app, pilot):
        await pilot.click(LazyTable, offset=(3, 4))
        await quiet(app, pilot)
        assert app.table.cursor == 3 and not any(heard[0] == "chosen" for heard in app.heard)
        await pilot.click(LazyTable, offset=(3, 5), times=2)
        await quiet(app, pilot)
        assert app.heard[-1] == ("chosen", 4)
        for x in (2, 38, 45, 55):
            await pilot.click(LazyTable, offset=(x, 0))
        await quiet(app, pilot)
        assert [key for what, key in app.heard if what == "sort"] == ["name", "items", "bytes"]


async def test_the_wheel_moves_the_view_and_not_the_cursor() -> None:
    async with hall() as (app, pilot):
        app.table.scroll_to(y=500, animate=False)
        await quiet(app, pilot)
        assert app.table.cursor == 0 and line(app.table.render_line(1)).split()[1] == "500"
        await pilot.press("down")
        await quiet(app, pilot)
        assert app.table.cursor == 1 and app.table.scroll_offset.y == 1


async def test_a_failed_fetch_is_told_once_and_tried_again_with_the_next_load() -> None:
    async with hall() as (app, pilot):
        app.error = OSError("the disk is gone")
        app.table.cursor = 10_000
        await quiet(app, pilot)
        app.table.cursor = 20_000
        await quiet(app, pilot)
        assert [heard for heard in app.heard if heard[0] == "failed"] == [("failed", "the disk is gone")]
        app.error = None
        await app.table.load_rows(1_000_000, 20_000)
        app.table.cursor = 40_000
        await quiet(app, pilot)
        assert app.table.cursor_row == 40_000


async def test_the_head_says_what_the_order_is() -> None:
    async with hall() as (app, _):
        await app.table.load_rows(9, sorted_by=("items", True))
        assert "items▼" in line(app.table.render_line(0))
        await app.table.load_rows(9, sorted_by=("items", False))
        assert "items▲" in line(app.table.render_line(0)) and "name▲" not in line(app.table.render_line(0))


async def test_text_is_cleaned_cut_and_never_markup() -> None:
    async with hall(count=3) as (app, _):
        app.cells = lambda row: [Cell(hostile[row]), Cell("1"), Cell("\x1b[2J"), Cell("")]  # type: ignore[method-assign]
        app.table._cells = app.cells
        hostile = ["[red]x[/] \x1b[31m\r\nnew\x07", "界" * 60, "\u202ee\u0301" * 3]
        lines = [app.table.render_line(y) for y in range(1, 4)]
        assert line(lines[0]).startswith(" [red]x[/] [31m new") and "\x1b" not in "".join(s.text for s in lines)
        assert "…" in lines[1].text and all(strip.cell_length == 60 for strip in lines)
        assert all(text.isprintable() for text in (strip.text for strip in lines))


def test_a_narrow_table_drops_columns_that_matter_least() -> None:
    assert layout_columns(COLUMNS, 60) == [(0, 1, 36), (1, 38, 6), (2, 45, 8), (3, 54, 6)]
    assert [number for number, _, _ in layout_columns(COLUMNS, 33)] == [0, 1, 3]
    assert layout_columns(COLUMNS, 20) == [(0, 1, 12), (1, 14, 6)]
    assert layout_columns(COLUMNS, 4) == [(0, 1, 10), (1, 12, 6)]


async def test_the_width_follows_the_window() -> None:
    async with hall(size=(33, 12)) as (app, pilot):
        assert line(app.table.render_line(0)).split() == ["name", "items", "bytes"]
        await pilot.resize_terminal(80, 12)
        await quiet(app, pilot)
        assert "task" in line(app.table.render_line(0))


async def test_without_colours_the_cursor_is_reversed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async with hall() as (app, pilot):
        await pilot.press("down")
        reversed_ = [any(part.style and part.style.reverse for part in app.table.render_line(y)) for y in (1, 2, 3)]
        assert reversed_ == [False, True, False]
