"""The Users screen: a table of all users, filtered while typing, and details of the user under the cursor.

Shows results of `store.queries.user_table` and `pipeline.users.detail`. Long work is a job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.widgets import Input, Static
from textual.widgets.option_list import Option

from mta_cli.errors import NotFound
from mta_cli.terminal.user_columns import USER_COLUMNS, UserColumn
from mta_cli.text.formatting import format_bytes, pluralise
from mta_cli.tui.dialogs.basic import ChoiceDialog
from mta_cli.tui.screens.base import USER_MARK, BaseScreen
from mta_cli.tui.text import format_signed, line_text
from mta_cli.tui.widgets.lazy_table import Cell, Column, LazyTable
from mta_cli.tui.widgets.user_detail import UserPane
from mta_cli.tui.workers.undo import removal_effects
from store.queries.user_row import SORT_COLUMNS

if TYPE_CHECKING:
    from mta_cli.events import Event
    from mta_cli.pipeline.users.detail import UserDetail
    from mta_cli.tui.workers.job_queue import Job
    from store.queries.user_row import UserRow
    from store.records import Item
    from store.registry import Registry

SHOWN_COLUMNS = sorted(  # name and status first, for narrow windows
    (column for column in USER_COLUMNS if column.width), key=lambda column: column.key not in ("name", "status")
)
COLUMNS = [
    Column(
        each.key,
        each.key,
        each.width,
        align_right=each.kind != "text",
        grows=each.key == "name",
        drop_priority=each.drop_priority,
        sortable=each.key in SORT_COLUMNS,
    )
    for each in SHOWN_COLUMNS
]
SORTABLE_KEYS = tuple(column.key for column in COLUMNS if column.sortable)
VALUE_FORMATS: dict[str, Callable[[Any], str]]
VALUE_FORMATS = {"text": str, "count": "{:,}".format, "bytes": format_bytes, "change": format_signed}
HISTORY_PAGE_ITEMS = 20  # history items shown at once
LOOKUP_DELAY_SECONDS = 0.06  # the cursor must rest on a user this long before the detail is read

NO_USERS_HELP = """There are no users yet.

Press m for the demo, which takes included sample users through every stage.
Press i to import histories from a file, or type in a shell
  mta data import FILE
  mta demo"""


@dataclass(frozen=True)
class _TableState:
    """The number of all users and of matching ones, and the row of the requested user, if it matches."""

    total: int
    matching: int
    cursor: int | None


class UsersScreen(BaseScreen):
    """The table of users with its filter, and a pane with the user under the cursor."""

    SCREEN_NAME = "users"
    CSS_PATH = "users.tcss"
    AUTO_FOCUS = "LazyTable"
    HELP = (
        "Type part of a name after /. Conditions that a filter knows, all of which must hold:\n"
        "status:adapted (new, anchor, fused), task:NAME, items>5, queries=0, anchors<4, bytes>=100, change>0\n"
        "change: by how many nats the stack lowered the loss on held-out queries; more is better.\n"
        "bytes: what is stored for the user, recipe and stack.\n"
        "Enter selects the user for all screens."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="users.filter", tooltip="Filter the users"),
        Binding("escape", "clear", "Clear", id="users.clear", show=False, tooltip="Show all users again"),
        Binding("c", "open_screen('compare')", "Compare", id="users.compare", tooltip="Compare this user's models"),
        Binding("t", "open_screen('chat')", "Chat", id="users.chat", tooltip="Chat with this user's model"),
        Binding("a", "adapt", "Adapt", id="users.adapt", tooltip="Train this user's stack"),
        Binding("d", "remove", "Remove", id="users.remove", tooltip="Remove this user and all their data; asks first"),
        Binding("s", "sort", "Sort", id="users.sort", show=False, tooltip="Sort by the next column"),
        Binding("S", "reverse_sort", "Reverse", id="users.turn", show=False, tooltip="Reverse the order"),
        Binding("f", "task", "Task", id="users.task", show=False, tooltip="Show one task only, in all screens"),
        Binding("o", "older", "Older", id="users.older", show=False, tooltip="Show more of the history"),
        Binding("i", "start('data import')", "Import", id="users.import", tooltip="Import histories from a file"),
        Binding("m", "start('demo')", "Demo", id="users.demo", tooltip="Start the demo"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._sort_by: tuple[str, bool] = ("name", False)
        self._history_limit = HISTORY_PAGE_ITEMS
        self._shown_user: str | None = None
        self._followed_user: str | None = None  # the selected user to whom the cursor was moved last

    def compose_body(self) -> ComposeResult:
        """The filter and the count; then the table beside or above the pane."""
        with Horizontal(id="line"):
            yield Input(placeholder="/ to filter: part of a name, status:adapted, items>5 …", id="filter", compact=True)
            yield Static(id="count")
        yield Static(Text(NO_USERS_HELP), id="empty")
        yield Static(line_text("No user matches the filter. Escape removes it."), id="no-match")
        with Container(id="pane"):
            yield LazyTable(COLUMNS, self._fetch_rows, self._user_row_cells, id="users")
            yield UserPane(id="user")

    @property
    def user_table(self) -> LazyTable:
        """The widget with the table of users."""
        return self.query_one("#users", LazyTable)

    @property
    def highlighted_user(self) -> str | None:
        """The name of the user under the cursor; None without one."""
        row: UserRow | None = self.user_table.cursor_row
        return row.name if row is not None else None

    async def reload(self) -> None:
        """Read the users again. The cursor stays on its user, or moves to a newly selected one."""
        selected = self.mta_app.selected_user
        if selected in (None, self._followed_user):
            await self._load_users(self.highlighted_user)
        elif not await self._load_users(selected) and self._filter_text:
            with self.prevent(Input.Changed):
                self.query_one("#filter", Input).value = ""
            await self._load_users(selected)
        self._followed_user = selected

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable keys that act on a user while there is none, and enable the demo's key only without users."""
        if not self.is_mounted:
            return True
        empty = self.has_class("-empty")
        if action == "start":
            return empty
        if action in ("open_screen", "adapt", "remove", "older") and self.has_class("-no-match"):
            return None
        if action in ("filter", "sort", "reverse_sort", "task", "open_screen", "adapt", "remove", "older"):
            return not empty
        return True

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter the users while typing; the cursor stays on its user if that matches."""
        self._load_in_worker(self.highlighted_user)

    def on_input_submitted(self) -> None:
        """Focus the table."""
        self.user_table.focus()

    def on_key(self, event: events.Key) -> None:
        """Move from the filter to the table with the down key."""
        if event.key == "down" and self.query_one("#filter").has_focus:
            event.stop()
            self.user_table.focus()

    def on_lazy_table_highlighted(self, event: LazyTable.Highlighted) -> None:
        """Show the user under the cursor."""
        if event.row.name != self._shown_user:
            self._history_limit = HISTORY_PAGE_ITEMS
        self._load_user_pane(event.row.name)

    def on_lazy_table_selected(self, event: LazyTable.Selected) -> None:
        """Select the user for all screens."""
        self.mta_app.select_user(event.row.name)

    def on_lazy_table_sort_requested(self, event: LazyTable.SortRequested) -> None:
        """Sort by the clicked column, or reverse the order if that is the current column."""
        key, descending = self._sort_by
        self._sort(event.key, not descending if event.key == key else event.key != "name")

    def on_lazy_table_fetch_failed(self, event: LazyTable.FetchFailed) -> None:
        """Show the error of reading rows."""
        self.show_reading_error(event.error)

    def action_filter(self) -> None:
        """Focus the filter."""
        self.query_one("#filter").focus()

    def action_clear(self) -> None:
        """Clear the filter and focus the table."""
        self.query_one("#filter", Input).value = ""
        self.user_table.focus()

    def action_open_screen(self, screen: str) -> None:
        """Select the user under the cursor and show a screen."""
        if (name := self.highlighted_user) is not None:
            self.mta_app.select_user(name)
            self.mta_app.show_screen(screen)

    def action_adapt(self) -> None:
        """Show the form of an adaptation of this user; if it is submitted, queue the job."""
        if (name := self.highlighted_user) is not None:
            self.mta_app.select_user(name)
            self.action_start("user adapt", users=name)

    @work(group="ask", exit_on_error=False)
    async def action_remove(self) -> None:
        """Show what removing this user removes; after a confirmation, queue the removal."""
        from mta_cli.pipeline.users.removal import plan_user_removal, remove_user

        if (name := self.highlighted_user) is None:
            return
        _, effects = await self.mta_app.store_thread.run(lambda reg: removal_effects(plan_user_removal(reg, name)))
        question = f"Remove {name} and all their data? This cannot be undone.\n\n" + "\n".join(effects)
        if not await self.mta_app.confirm(question):
            return

        def make(reg: Registry) -> Iterator[Event]:
            return remove_user(reg, name)

        waits = self.mta_app.job_queue.has_unfinished_jobs
        self.mta_app.job_queue.add_job("user rm", name, make, self._handle_removal_end)
        if waits:
            self.notify("queued: the removal runs when the jobs before it have ended", markup=False)

    @work(group="ask", exit_on_error=False)
    async def action_task(self) -> None:
        """Choose a task for all screens."""
        tasks = await self.mta_app.store_thread.run(lambda reg: reg.user_table.tasks_with_user_counts())
        counts = ((task, line_text(pluralise(users, "user"), "dim")) for task, users in tasks)
        options = [Option(Text.assemble(line_text(task), "  ", count), task) for task, count in counts]
        everything = Option(line_text("all tasks"), "")
        dialog = ChoiceDialog("Show one task only", [everything, *options], self.mta_app.selected_task or "")
        picked = await self.mta_app.push_screen_wait(dialog)
        if picked is not None:
            self.mta_app.select_task(picked or None)

    def action_sort(self) -> None:
        """Sort by the next column."""
        key = SORTABLE_KEYS[(SORTABLE_KEYS.index(self._sort_by[0]) + 1) % len(SORTABLE_KEYS)]
        self._sort(key, key != "name")  # largest first, except for names

    def action_reverse_sort(self) -> None:
        """Reverse the order."""
        self._sort(self._sort_by[0], not self._sort_by[1])

    def action_older(self) -> None:
        """Show older history items."""
        if self._shown_user is not None:
            self._history_limit += HISTORY_PAGE_ITEMS
            self._load_user_pane(self._shown_user)

    def _sort(self, key: str, descending: bool) -> None:
        self._sort_by = (key, descending)
        self._load_in_worker(None)

    @work(group="reload", exclusive=True, exit_on_error=False)
    async def _load_in_worker(self, name: str | None) -> None:
        await self._load_users(name)

    async def _load_users(self, name: str | None) -> bool:
        """Load the matching users, with the cursor on `name` if it matches. Returns whether it does."""
        words, task, (sort, descending) = self._filter_text, self.mta_app.selected_task, self._sort_by
        found = await self.mta_app.store_thread.run(partial(_read_table_state, words, task, sort, descending, name))
        was_empty = self.has_class("-empty")
        self.set_class(not found.total and task is None, "-empty")
        self.set_class(bool(found.total or task) and not found.matching, "-no-match")
        count = f"{found.total:,}" if found.matching == found.total else f"{found.matching:,} of {found.total:,}"
        self.query_one("#count", Static).update(line_text(count if task is None else f"{count} of task {task}"))
        await self.user_table.load_rows(found.matching, found.cursor or 0, sorted_by=self._sort_by)
        if not found.matching:
            self._shown_user = None
            self.query_one(UserPane).clear_user()
        if was_empty and found.total:
            self.user_table.focus()
        self.refresh_bindings()
        return found.cursor is not None

    @property
    def _filter_text(self) -> str:
        return self.query_one("#filter", Input).value

    async def _fetch_rows(self, offset: int, limit: int) -> Sequence[UserRow]:
        words, task, (sort, descending) = self._filter_text, self.mta_app.selected_task, self._sort_by
        return await self.mta_app.store_thread.run(
            lambda reg: reg.user_table.user_page(words, sort, descending, offset, limit, task)
        )

    def _user_row_cells(self, row: UserRow) -> Sequence[Cell]:
        if row.name == self.mta_app.selected_user:
            return [Cell(f"{USER_MARK} {row.name}", "chosen"), *(_cell(each, row) for each in SHOWN_COLUMNS[1:])]
        return [_cell(each, row) for each in SHOWN_COLUMNS]

    @work(exclusive=True, group="user", exit_on_error=False)
    async def _load_user_pane(self, name: str) -> None:
        from mta_cli.pipeline.users.detail import load_user_detail

        await asyncio.sleep(LOOKUP_DELAY_SECONDS)
        task, count = self.mta_app.selected_task, self._history_limit
        base = self.mta_app.model_options.base

        def look(reg: Registry) -> tuple[UserDetail, list[Item]]:
            found = load_user_detail(reg, name, task, base)
            items = reg.items.recent_items(found.user.id, found.task, count) if found.task is not None else []
            return found, items[::-1]

        try:
            user, items = await self.mta_app.store_thread.run(look)
        except NotFound:  # removed since the row was read
            self._shown_user = None
            self.query_one(UserPane).clear_user("This user was removed.")
            return
        pane = self.query_one(UserPane)
        if self._shown_user != name:
            pane.scroll_home(animate=False)
        self._shown_user = name
        pane.show_user(user, items)

    def show_queued_job(self, job: Job) -> None:
        """Show a notification, because the job changes this screen when it ends."""
        self.notify(f"{job.title}: queued; press 4 to see it in Jobs", markup=False)

    def _handle_removal_end(self, job: Job) -> None:
        if job.error is not None:
            self.mta_app.show_error(job.error)
        elif job.state == "done":
            if job.result["user"] == self.mta_app.selected_user:
                self.mta_app.select_user(None)
            for text in job.log:
                self.notify(text, markup=False)


def _cell(column: UserColumn, row: UserRow) -> Cell:
    value = getattr(row, column.key)
    if value is None or (column.quiet and not value):
        return Cell("")
    tone = "quiet" if column.quiet or (column.key, value) == ("status", "new") else ""
    if column.kind == "change":
        tone = "good" if value > 0 else "bad"
    return Cell(VALUE_FORMATS[column.kind](value), tone)


def _read_table_state(
    words: str, task: str | None, sort: str, descending: bool, name: str | None, reg: Registry
) -> _TableState:
    total = reg.user_table.count_users_matching("", task)
    fitting = (
        reg.user_table.count_users_matching(words, task, sort=sort, descending=descending) if words.strip() else total
    )
    place = reg.user_table.index_of_user(name, words, sort, descending, task) if name is not None else None
    return _TableState(total, fitting, place)
