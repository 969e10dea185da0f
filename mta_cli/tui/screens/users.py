"""Users: everybody in one table, filtered as it is typed and sorted by SQL, and one person in detail.

Shows what `store.queries.user_table` and `pipeline.person` found. Long work is a job of Jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.widgets import Input, Static

from mta_cli.errors import NotFound
from mta_cli.tui.messages import JobMoved
from mta_cli.tui.screens.base import Room
from mta_cli.tui.text import line, signed, size
from mta_cli.tui.widgets.lazy_table import Cell, Column, LazyTable
from mta_cli.tui.widgets.user_detail import PersonPane

if TYPE_CHECKING:
    from mta_cli.events import Event
    from mta_cli.pipeline.users.detail import Person
    from mta_cli.tui.workers.job_queue import Job
    from store.queries.user_table import PersonRow
    from store.records import Item
    from store.registry import Registry

COLUMNS = (
    Column("name", "name", 14, grows=True),
    Column("status", "status", 8),
    Column("items", "items", 7, right=True),
    Column("queries", "queries", 8, right=True, drop=4),
    Column("task", "task", 8, drop=2, sorts=False),
    Column("anchors", "anchors", 7, right=True, drop=3, sorts=False),
    Column("bytes", "bytes", 7, right=True, drop=1),
    Column("change", "change", 7, right=True),
)
SORTS = tuple(column.key for column in COLUMNS if column.sorts)
DOWNWARDS = frozenset({"items", "queries", "status", "bytes", "change"})  # most first is what one looks for
MORE = 20  # history items shown at once
NOTHING_THERE = ("0", "no bank", "none", "nobody's")
PAUSE = 0.06  # seconds that the cursor rests on somebody before they are looked up

EMPTY = """Nobody is here yet.

Press m for the demo: people who come with the program, through every stage.
Press i to import histories from a file, or type in a shell
  mta data import jsonl FILE
  mta demo"""


@dataclass(frozen=True)
class _Found:
    """How many there are, how many fit, and where the cursor belongs."""

    total: int
    fitting: int
    cursor: int


class UsersRoom(Room):
    """The table of people, what is typed to find them, and the one under the cursor."""

    ROOM = "users"
    CSS_PATH = "users.tcss"
    AUTO_FOCUS = "LazyTable"
    HELP = (
        "Type a part of a name after /. Other words that a filter knows, all of which must hold:\n"
        "status:adapted (new, anchor, fused), task:NAME, items>5, queries=0, anchors<4, bytes>=100, change>0\n"
        "change: by how much the stack lowered the loss on held-out queries; more is better.\n"
        "bytes: all that is kept for somebody, recipe and stack.\n"
        "Enter chooses somebody: all rooms then work for them."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/", id="users.filter", tooltip="Type whom to show"),
        Binding("escape", "clear", "Clear", id="users.clear", show=False, tooltip="Show everybody again"),
        Binding("c", "use('compare')", "Compare", id="users.compare", tooltip="Compare this person's models"),
        Binding("t", "use('chat')", "Chat", id="users.chat", tooltip="Talk with this person's model"),
        Binding("a", "adapt", "Adapt", id="users.adapt", tooltip="Train this person's stack"),
        Binding("d", "remove", "Remove", id="users.remove", tooltip="Forget this person; asks first"),
        Binding("s", "sort", "Sort", id="users.sort", show=False, tooltip="Sort by the next column"),
        Binding("S", "turn", "Turn", id="users.turn", show=False, tooltip="Turn the order round"),
        Binding("f", "task", "Task", id="users.task", show=False, tooltip="Show one task alone, in all rooms"),
        Binding("o", "older", "Older", id="users.older", show=False, tooltip="Show more of the history"),
        Binding("i", "start('data import')", "Import", id="users.import", tooltip="Import histories from a file"),
        Binding("m", "start('demo')", "Demo", id="users.demo", tooltip="Start the demo"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._order: tuple[str, bool] = ("name", False)
        self._items = MORE
        self._shown: str | None = None
        self._came = False
        self._removals: set[Job] = set()

    def furnish(self) -> ComposeResult:
        """What is typed and how many fit; then the table beside or above the pane."""
        with Horizontal(id="line"):
            yield Input(placeholder="/ to filter: part of a name, status:adapted, items>5 …", id="filter", compact=True)
            yield Static(id="count")
        yield Static(Text(EMPTY), id="empty")
        yield Static(line("Nobody fits. esc shows everybody again."), id="nobody")
        with Container(id="pane"):
            yield LazyTable(COLUMNS, self._fetch, self._cells, id="people")
            yield PersonPane(id="person")

    @property
    def people(self) -> LazyTable:
        """The table."""
        return self.query_one("#people", LazyTable)

    @property
    def name_here(self) -> str | None:
        """Whom the cursor is on."""
        row: PersonRow | None = self.people.row
        return row.name if row is not None else None

    async def reload(self) -> None:
        """Read everything again; the cursor stays on its person, or goes to the chosen one at first."""
        await self._load(self.name_here if self._came else self.home.chosen)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What needs somebody is dim without them; the demo is offered where nobody is."""
        if not self.is_mounted:
            return True
        empty = self.has_class("-empty")
        if action == "start":
            return empty
        if action in ("use", "adapt", "remove", "older") and self.has_class("-nobody"):
            return None
        if action in ("filter", "sort", "turn", "task", "use", "adapt", "remove", "older"):
            return not empty
        return True

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter as it is typed; the cursor stays on its person while they fit."""
        self.run_worker(self.guarded(self._load(self.name_here)), group="reload", exclusive=True)

    def on_input_submitted(self) -> None:
        """On to the people who were found."""
        self.people.focus()

    def on_key(self, event: events.Key) -> None:
        """Down leads from the words to the people."""
        if event.key == "down" and self.query_one("#filter").has_focus:
            event.stop()
            self.people.focus()

    def on_lazy_table_highlighted(self, event: LazyTable.Highlighted) -> None:
        """Look up whoever the cursor rests on."""
        if event.row.name != self._shown:
            self._items = MORE
        self._look_up(event.row.name)

    def on_lazy_table_selected(self, event: LazyTable.Selected) -> None:
        """Work for them."""
        self.home.choose(event.row.name)

    def on_lazy_table_sort_asked(self, event: LazyTable.SortAsked) -> None:
        """Sort by that column, or turn its order round."""
        key, descending = self._order
        self._sort(event.key, not descending if event.key == key else event.key in DOWNWARDS)

    def on_lazy_table_failed(self, event: LazyTable.Failed) -> None:
        """Tell why there are no more rows."""
        self.home.fail(event.error)

    def on_job_moved(self, message: JobMoved) -> None:
        """A removal that was begun here has ended."""
        job = message.job
        if job not in self._removals or not job.over:
            return
        self._removals.discard(job)
        if job.error is not None:
            self.home.fail(job.error)
        elif job.state == "done":
            if job.result["user"] == self.home.chosen:
                self.home.choose(None)
            for text in job.log:
                self.notify(text, markup=False)

    def action_filter(self) -> None:
        """Type."""
        self.query_one("#filter").focus()

    def action_clear(self) -> None:
        """From the words back to the table, without them."""
        words = self.query_one("#filter", Input)
        words.value = ""
        self.people.focus()

    def action_use(self, room: str) -> None:
        """Choose them and go to a room."""
        if (name := self.name_here) is not None:
            self.home.choose(name)
            self.home.go(room)

    @work(group="ask")
    async def action_adapt(self) -> None:
        """Ask how, show the plan, queue the job."""
        from mta_cli.tui.job_forms import ask_and_start

        if (name := self.name_here) is None:
            return
        self.home.choose(name)
        await self.guarded(self._told(ask_and_start(self.home, "user adapt", users=name)))

    @work(group="ask")
    async def action_start(self, kind: str) -> None:
        """Ask for a job that brings people."""
        from mta_cli.tui.job_forms import ask_and_start

        await self.guarded(self._told(ask_and_start(self.home, kind)))

    @work(group="ask")
    async def action_remove(self) -> None:
        """Say what would go, ask, and queue the removal."""
        if (name := self.name_here) is not None:
            await self.guarded(self._remove(name))

    @work(group="ask")
    async def action_task(self) -> None:
        """Choose a task for all rooms."""
        await self.guarded(self._choose_task())

    def action_sort(self) -> None:
        """By the next column."""
        key = SORTS[(SORTS.index(self._order[0]) + 1) % len(SORTS)]
        self._sort(key, key in DOWNWARDS)

    def action_turn(self) -> None:
        """The same column the other way."""
        self._sort(self._order[0], not self._order[1])

    def action_older(self) -> None:
        """More of the history that is shown."""
        if self._shown is not None:
            self._items += MORE
            self._look_up(self._shown)

    def _sort(self, key: str, descending: bool) -> None:
        self._order = (key, descending)
        self.run_worker(self.guarded(self._load(None)), group="reload", exclusive=True)

    async def _load(self, name: str | None) -> None:
        """Everybody who fits, in order, with the cursor on `name` if they are among them."""
        words, task, (sort, descending) = self._words, self.home.chosen_task, self._order
        found = await self.home.shelf.read(partial(_look, words, task, sort, descending, name))
        self._came = True
        was_empty = self.has_class("-empty")
        self.set_class(not found.total and task is None, "-empty")
        self.set_class(bool(found.total or task) and not found.fitting, "-nobody")
        self.query_one("#count", Static).update(line(_counted(found, task)))
        await self.people.load(found.fitting, found.cursor, sorted_by=self._order)
        if not found.fitting:
            self._shown = None
            self.query_one(PersonPane).clear()
        if was_empty and found.total:
            self.people.focus()
        self.refresh_bindings()

    @property
    def _words(self) -> str:
        return self.query_one("#filter", Input).value

    async def _fetch(self, offset: int, limit: int) -> Sequence[PersonRow]:
        words, task, (sort, descending) = self._words, self.home.chosen_task, self._order
        return await self.home.shelf.read(lambda reg: reg.people.page(words, sort, descending, offset, limit, task))

    def _cells(self, row: PersonRow) -> Sequence[Cell]:
        chosen = row.name == self.home.chosen
        change = "" if row.change is None else "good" if row.change > 0 else "bad"
        return (
            Cell(f"● {row.name}" if chosen else row.name, "chosen" if chosen else ""),
            Cell(row.status, "quiet" if row.status == "new" else ""),
            Cell(f"{row.items:,}"),
            Cell(f"{row.queries:,}"),
            Cell(row.task or "", "quiet"),
            Cell(str(row.anchors) if row.anchors else "", "quiet"),
            Cell(size(row.bytes) if row.bytes else "", "quiet"),
            Cell("" if row.change is None else signed(row.change), change),
        )

    @work(exclusive=True, group="person")
    async def _look_up(self, name: str) -> None:
        """Read and show one person, unless the cursor goes on at once."""
        from mta_cli.pipeline.users.detail import history, look_at

        await asyncio.sleep(PAUSE)
        task, count = self.home.chosen_task, self._items

        def look(reg: Registry) -> tuple[Person, list[Item]]:
            person = look_at(reg, name, task)
            return person, history(reg, name, person.task, 0, count) if person.task is not None else []

        try:
            person, items = await self.home.shelf.read(look)
        except NotFound:  # forgotten since the row was read
            self._shown = None
            self.query_one(PersonPane).clear("gone")
        except Exception as error:
            self.home.fail(error)
        else:
            pane = self.query_one(PersonPane)
            if self._shown != name:
                pane.scroll_home(animate=False)
            self._shown = name
            pane.show(person, items)

    async def _told(self, asking: Coroutine[Any, Any, Job | None]) -> None:
        """Say that a job was queued, and where it is watched."""
        if (job := await asking) is not None:
            self.notify(f"{job.title}: queued; 4 shows it in Jobs", markup=False)

    async def _choose_task(self) -> None:
        from mta_cli.tui.widgets.task_picker import TaskPicker

        tasks = await self.home.shelf.read(lambda reg: reg.people.tasks())
        picked = await self.home.push_screen_wait(TaskPicker(tasks, self.home.chosen_task))
        if picked is not None:
            self.home.choose_task(picked[0])

    async def _remove(self, name: str) -> None:
        from mta_cli.pipeline.users.forget import forget_user

        traces = await self.home.shelf.read(partial(_traces, name))
        if not await self.home.sure(f"Forget {name}? Every trace goes, and nothing brings it back.\n\n{traces}"):
            return

        def make(reg: Registry) -> Iterator[Event]:
            return forget_user(reg, name)

        waits = self.home.board.busy
        self._removals.add(self.home.board.add("user rm", name, make))
        if waits:
            self.notify("the removal waits until the jobs before it have ended", markup=False)


def _look(words: str, task: str | None, sort: str, descending: bool, name: str | None, reg: Registry) -> _Found:
    total = reg.people.count("", task)
    fitting = reg.people.count(words, task, sort=sort, descending=descending) if words.strip() else total
    place = reg.people.place(name, words, sort, descending, task) if name is not None else None
    return _Found(total, fitting, place or 0)


def _counted(found: _Found, task: str | None) -> str:
    number = f"{found.total:,}" if found.fitting == found.total else f"{found.fitting:,} of {found.total:,}"
    return f"{number} of task {task}" if task is not None else number


def _traces(name: str, reg: Registry) -> str:
    """What would go with somebody, a line each."""
    from mta_cli.events import Planned
    from mta_cli.pipeline.users.forget import plan_forget

    plans = (event for event in plan_forget(reg, name) if isinstance(event, Planned))
    return "\n".join(
        f"{line.name}: {line.value}" for plan in plans for line in plan.lines[1:] if line.value not in NOTHING_THERE
    )
