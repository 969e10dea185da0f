"""The room of jobs: what was interrupted, what runs and waits and is over; starting, watching, stopping, going on.

Jobs are run by the window's board; the room shows them and asks. Knows no job's options.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import OptionList, RichLog, Static
from textual.widgets.option_list import Option

from mta_cli.options import EvalOptions, Machine
from mta_cli.pipeline.maintenance import resume as stopped
from mta_cli.pipeline.maintenance.resume import Unfinished, unfinished
from mta_cli.tui.job_forms import STARTS, ask_and_start
from mta_cli.tui.messages import JobMoved, PersonChosen, StoreChanged
from mta_cli.tui.screens.base import Room
from mta_cli.tui.text import block, line
from mta_cli.tui.widgets import job_row
from mta_cli.tui.workers.job_queue import LOG_LINES, Job

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mta_cli.events import Event
    from store.registry import Registry

EMPTY = """Nothing runs, and nothing was interrupted. Start something:

{starts}

A new store begins with i or m; then b builds a bank, a adapts people to it, and e measures what that is worth."""


class Chooser(ModalScreen[str | None]):
    """Which kind of job to start."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Back", id="chooser.back", tooltip="Start nothing"),
        *(
            Binding(start.key, f"dismiss('{start.kind}')", start.kind, id=f"chooser.{start.key}", show=False)
            for start in STARTS.values()
        ),
    ]

    def compose(self) -> ComposeResult:
        """The kinds, with their keys."""
        with Vertical(classes="dialog"):
            yield Static(line("Start a job", "bold"))
            yield OptionList(*(Option(_start_line(kind), kind) for kind in STARTS), markup=False)

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        """By Enter or a click."""
        self.dismiss(event.option_id)


class JobsRoom(Room):
    """The list of jobs, and the log of the one that is looked at."""

    ROOM = "jobs"
    CSS_PATH = "jobs.tcss"
    HELP = """Jobs run one after another; you can go to other rooms meanwhile.
↻ was interrupted and can go on with the options that it was begun with.
▶ runs   · waits   ✓ done   ✗ failed   ■ stopped
Enter goes on with what was interrupted, and else moves to the log.
A job that is stopped keeps what is finished and a checkpoint of the rest.
The curve is the loss from its first value to its last."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "New job", id="jobs.new", tooltip="Choose what to start"),
        Binding("r", "resume", "Go on", id="jobs.resume", tooltip="Go on with what was interrupted"),
        Binding("x", "give_up", "Give up", id="jobs.give_up", tooltip="Never offer it again; what is half done goes"),
        Binding("s", "stop", "Stop", id="jobs.stop", tooltip="Stop the job; it keeps a checkpoint"),
        *(
            Binding(
                start.key,
                f"start('{start.kind}')",
                start.kind.capitalize(),
                id=f"jobs.{start.kind.replace(' ', '_')}",
                tooltip=start.about,
                show=False,
            )
            for start in STARTS.values()
        ),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._offers: dict[str, Unfinished] = {}
        self._resumed: dict[str, Job] = {}
        self._ids: list[str] = []
        self._written: tuple[Job, list[str]] | None = None

    def furnish(self) -> ComposeResult:
        """The list, what is selected, and what to do where there is nothing."""
        with Vertical(id="jobs"):
            yield OptionList(id="list", markup=False)
            with Vertical(id="detail"):
                yield Static(id="head")
                yield RichLog(id="log", max_lines=LOG_LINES, min_width=20, wrap=True)
        yield Static(block(EMPTY.format(starts="\n".join(_start_line(kind).plain for kind in STARTS))), id="nothing")

    def on_mount(self) -> None:
        """Clocks of running jobs go on between their steps."""
        self.set_interval(1.0, self._tick)
        self.screen_layout_refresh_signal.subscribe(self.query_one("#log"), self._laid_out)

    async def reload(self) -> None:
        """Look for interrupted jobs, and show all."""
        found = await self.home.shelf.read(unfinished)
        self._offers = {key: one for one in found if not self._at_work(key := _key(one), one)}
        self._show_list()

    @on(StoreChanged)
    @on(PersonChosen)
    def changed(self) -> None:
        """Interrupted jobs may be others; `stale` has asked for them."""

    @on(JobMoved)
    def moved(self, event: JobMoved) -> None:
        """A job went on."""
        self._refresh(event.job)

    @on(OptionList.OptionHighlighted, "#list")
    def looked_at(self) -> None:
        """Show another one."""
        self._show_detail()
        self.refresh_bindings()

    @on(OptionList.OptionSelected, "#list")
    def entered(self) -> None:
        """Enter: go on with what was interrupted, or read the log."""
        if self._offer is not None:
            self.action_resume()
        else:
            self.query_one("#log").focus()

    def on_resize(self, event: Resize) -> None:
        """Lines are cut and folded anew."""
        self._written = None
        self.call_after_refresh(self._show_list)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that mean nothing for what is selected are not shown."""
        if action in ("resume", "give_up"):
            return self._offer is not None
        if action == "stop":
            return self._job is not None and not self._job.over
        return super().check_action(action, parameters)

    @work
    async def action_new(self) -> None:
        """Choose a kind, then fill its form."""
        kind = await self.app.push_screen_wait(Chooser())
        if kind is not None:
            self.action_start(kind)

    @work
    async def action_start(self, kind: str) -> None:
        """Ask for a job of this kind and queue it."""
        await self.guarded(self._start(kind))

    @work
    async def action_stop(self) -> None:
        """Stop the selected job, if the person means it."""
        job = self._job
        if (
            job is not None
            and not job.over
            and await self.home.sure(
                f"Stop {job.kind} · {job.title}? What is finished is kept, and it can go on later."
            )
        ):
            self.home.board.stop(job)
            self._refresh(job)
            self.refresh_bindings()

    def action_resume(self) -> None:
        """Go on with the interrupted job that is selected."""
        one = self._offer
        if one is None:
            return
        settings = self.home.settings
        machine, defaults = settings.build(Machine), settings.build(EvalOptions)

        def make(reg: Registry) -> Iterator[Event]:
            return stopped.again(reg, one, machine, defaults)

        job = self.home.board.add(one.kind, one.title, make)
        self._resumed[_key(one)] = job
        self._offers.pop(_key(one), None)
        self._show_list(select=_job_id(job))

    @work
    async def action_give_up(self) -> None:
        """Take an interrupted job from the list for good."""
        one = self._offer
        if one is not None and await self.home.sure(_farewell(one)):
            await self.guarded(self._give_up(one))

    async def _give_up(self, one: Unfinished) -> None:
        await self.home.shelf.read(partial(stopped.give_up, one=one))
        await self.reload()

    async def _start(self, kind: str) -> None:
        job = await ask_and_start(self.home, kind)
        if job is not None:
            self._show_list(select=_job_id(job))
            self.query_one("#list").focus()

    @property
    def _selected(self) -> str | None:
        found = self.query("#list")
        place = found.first(OptionList).highlighted if found else None
        return self._ids[place] if place is not None and place < len(self._ids) else None

    @property
    def _offer(self) -> Unfinished | None:
        return self._offers.get(self._selected or "")

    @property
    def _job(self) -> Job | None:
        selected = self._selected
        return next((job for job in self.home.board.jobs if _job_id(job) == selected), None)

    def _at_work(self, key: str, one: Unfinished) -> bool:
        """Whether a job of this window is what would go on; one without a run is known by its kind alone."""
        resumed = self._resumed.get(key)
        if resumed is not None and not resumed.over:
            return True
        return one.run is None and any(job.kind == one.kind and not job.over for job in self.home.board.jobs)

    def _show_list(self, select: str | None = None) -> None:
        shown, width = self.query_one("#list", OptionList), self._width
        wanted = select or self._selected
        jobs = list(reversed(self.home.board.jobs))
        prompts = {key: job_row.offered(one, width) for key, one in self._offers.items()}
        prompts |= {_job_id(job): job_row.listed(job, width) for job in jobs}
        self._ids = list(prompts)
        shown.set_options(Option(prompt, key) for key, prompt in prompts.items())
        if self._ids:
            shown.highlighted = self._ids.index(wanted) if wanted in self._ids else 0
        self.query_one("#jobs").display = bool(self._ids)
        self.query_one("#nothing").display = not self._ids
        if self._ids and self.focused is None:
            shown.focus()
        self._show_detail()
        self.refresh_bindings()

    def _refresh(self, job: Job) -> None:
        """Bring one job up to date."""
        if _job_id(job) not in self._ids:
            self._show_list()
            return
        shown = self.query_one("#list", OptionList)
        shown.replace_option_prompt(_job_id(job), job_row.listed(job, self._width))
        if job is self._job:
            self._show_detail()
            self.refresh_bindings()

    def _show_detail(self) -> None:
        job, one, log = self._job, self._offer, self.query_one("#log", RichLog)
        if job is None:
            self.query_one("#head", Static).update(Text() if one is None else job_row.resting(one))
            self._written = None
            log.clear()
            return
        width = self.query_one("#head").content_size.width or 78
        self.query_one("#head", Static).update(job_row.head(job, width, time.time()))
        if not log.content_size.width:  # lines would be folded for no width at all: `_laid_out` comes back
            return
        written = self._written[1] if self._written is not None and self._written[0] is job else []
        fresh = job_row.unseen(written, job.log)
        if fresh is None or not written:
            log.clear()
            fresh = job.log
        follow = not written or log.is_vertical_scroll_end  # whoever scrolled back is left where they are
        for text in fresh:
            log.write(block(text), expand=True, scroll_end=False)
        if follow and fresh:
            self.call_after_refresh(log.scroll_end, animate=False)
        self._written = job, list(job.log)

    def _laid_out(self, _: object) -> None:
        """Show what had no room before."""
        if self._job is not None and (self._written is None or self._written[0] is not self._job):
            self._show_detail()

    def _tick(self) -> None:
        job = self._job
        if job is not None and job.state == "running" and self.is_current:
            width = self.query_one("#head").content_size.width or 78
            self.query_one("#head", Static).update(job_row.head(job, width, time.time()))

    @property
    def _width(self) -> int:
        return max(20, (self.query_one("#list").content_size.width or 78) - 2)


def _start_line(kind: str) -> Text:
    return Text(f"{STARTS[kind].key}  {kind:<12} {STARTS[kind].about}")


def _farewell(one: Unfinished) -> str:
    goes = {stopped.BANK: " Everything that was trained for it is removed."}.get(one.kind, "")
    return f"Give up {one.kind} · {one.title}?{goes} It will not be offered again."


def _key(one: Unfinished) -> str:
    return f"{one.kind} {one.number} {one.run}"


def _job_id(job: Job) -> str:
    return f"job {job.number}"
