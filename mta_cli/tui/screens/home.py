"""The Home screen, the first of a new window: the latest jobs, the users with the largest gains, and next steps.

Shows results of `pipeline.overview`. Every entry leads to its screen or form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.widgets import Static

from mta_cli.pipeline.overview import Gains, Overview, load_gains, load_overview
from mta_cli.text.formatting import pluralise
from mta_cli.tui.screens.base import BaseScreen
from mta_cli.tui.text import block_text, line_text
from mta_cli.tui.widgets.entry_list import Entry, EntryList
from mta_cli.tui.widgets.home_rows import action_line, chat_line, gain_line, job_record_line, window_job_line
from mta_cli.tui.workers.job_queue import Job, JobUpdated

MAX_ENTRIES = 24  # the most entries of a list
EMPTY_TEXT = "There are no users yet. Begin with one of these:"
JOB_SCREENS = {
    "quick": "results",
    "eval run": "results",
    "eval tune": "results",
    "bank build": "bank",
    "bank refresh": "bank",
    "user adapt": "users",
}


@dataclass(frozen=True)
class Target:
    """What an entry opens: a screen or the form of a kind of job, with a user to select or a conversation."""

    screen: str = ""
    form: str = ""
    user: str | None = None
    chat: int | None = None


class HomeScreen(BaseScreen):
    """Lists of next steps, jobs, conversations and gains, below a summary of the store."""

    SCREEN_NAME = "home"
    CSS_PATH = "home.tcss"
    AUTO_FOCUS = "#next"
    HELP = (
        "Next: the step that the store needs next, or what its models can be used for.\n"
        "Jobs: the latest, with their results. ↗ runs in another process; ↻ was interrupted and can be resumed.\n"
        "Helped most and least: the users whose own model gains or loses most against the common one in the newest "
        "evaluation. Without an evaluation, the held-out loss before and after adapting is compared. + is better.\n"
        "Enter opens the entry's screen. The arrow keys move through all lists."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "start('quick')", "Your file", id="home.quick", tooltip="From a file of your own to a verdict"),
        Binding("i", "start('data import')", "Import", id="home.import", tooltip="Import histories from a file"),
        Binding("m", "start('demo')", "Demo", id="home.demo", tooltip="Start the demo"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._overview: Overview | None = None
        self._gains: Gains | None = None
        self._gains_of = -1  # `store_changes` when the gains were read last

    def compose_body(self) -> ComposeResult:
        """The summary of the store, next steps, and the lists."""
        yield Static(id="summary")
        yield Static(id="verdict")
        yield EntryList("Next", "next")
        with Container(id="lists"):
            with Container(id="done"):
                yield EntryList("Jobs", "jobs")
                yield EntryList("Chats", "chats")
            with Container(id="gains"):
                yield EntryList("Helped most", "most")
                yield EntryList("Helped least", "least")

    def on_mount(self) -> None:
        """Hide the gains until there are any."""
        self.query_one("#gains").display = False

    async def reload(self) -> None:
        """Read the overview, then the gains, which can take longer."""
        own, user = [tuple(job.run_ids) for job in self.mta_app.job_queue.jobs], self.mta_app.selected_user
        self._overview = await self.mta_app.store_thread.run(
            lambda reg: load_overview(reg, jobs=MAX_ENTRIES, chats=MAX_ENTRIES, known_jobs=own, preferred_example=user)
        )
        self._show_overview(self._overview)
        if self._gains_of != self.mta_app.store_changes:
            self._load_gains(self.mta_app.store_changes)

    @work(group="gains", exclusive=True, exit_on_error=False)
    async def _load_gains(self, changes: int) -> None:
        self._gains_of = changes  # set before reading: gains that fail to load are tried again only after a change
        self._gains = await self.mta_app.profile_thread.run(lambda reg: load_gains(reg, MAX_ENTRIES))
        self._show_gains()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enable the demo's key only while the store has no users."""
        if parameters == ("demo",):
            return self._overview is None or self._overview.stage == "empty"
        return True

    @on(JobUpdated)
    def refresh_updated_job(self) -> None:
        """Show the progress of this window's jobs."""
        if self._overview is not None:
            self._show_next(self._overview)
        self._show_jobs()

    @on(EntryList.Opened)
    def open_entry(self, event: EntryList.Opened) -> None:
        """Open the entry's screen or form, with its user or conversation."""
        target = event.entry.target
        assert isinstance(target, Target)
        if target.user is not None:
            self.mta_app.select_user(target.user)
        self.mta_app.chat_to_open = target.chat
        if target.form:
            self.action_start(target.form)
        else:
            self.mta_app.show_screen(target.screen)

    def show_queued_job(self, job: Job) -> None:
        """Show the job's progress here."""
        job.on_end = self._notify_job_end
        self._show_jobs()

    def _notify_job_end(self, job: Job) -> None:
        """Notify of the job's end, unless the current screen shows it: Home, or, for a failure, Jobs."""
        if not self.is_current and job.state == "done":
            self.notify(f"{job.kind} {job.title}: done. Press 0 to see the result.", markup=False)
        self.mta_app.notify_if_failed(job)

    def _show_overview(self, overview: Overview) -> None:
        self.query_one("#summary", Static).update(
            line_text(EMPTY_TEXT if overview.stage == "empty" else _summary(overview))
        )
        verdict = self.query_one("#verdict", Static)
        verdict.display = bool(overview.verdict)
        verdict.update(block_text(overview.verdict))
        self._show_next(overview)
        now = datetime.now(UTC)
        self.query_one("#chats", EntryList).show_entries(
            [
                Entry(
                    f"chat {chat.id}", partial(chat_line, chat, now=now), Target("chat", user=chat.user, chat=chat.id)
                )
                for chat in overview.chats
            ]
        )
        self._show_jobs()
        self.refresh_bindings()
        if self.focused is None:
            self.query_one("#next").focus()

    def _show_next(self, overview: Overview) -> None:
        """Show next steps, or a running job of this window while there are no models."""
        running = self.mta_app.job_queue.running_job
        if running is not None and overview.stage != "ready":
            watch = partial(action_line, f"Watch {running.kind} {running.title}", "its log and its loss")
            entries: Sequence[Entry] = [Entry(f"watch {running.number}", watch, Target("jobs"))]
        else:
            entries = _next_entries(overview.stage, overview.example)
        shown = self.query_one("#next", EntryList)
        if [entry.key for entry in entries] != shown.keys:
            shown.show_entries(entries)

    def _show_jobs(self) -> None:
        """Show this window's jobs that are not recorded in the store, and the recorded ones."""
        now, jobs = datetime.now(UTC), self.mta_app.job_queue.jobs
        records = self._overview.jobs if self._overview is not None else ()
        shown = {run for job in jobs if not job.finished for run in job.run_ids}
        entries = [
            Entry(f"job {job.number}", partial(window_job_line, job, now=now), Target("jobs"))
            for job in reversed(jobs)
            if not (job.finished and job.run_ids)
        ]
        for record in records:
            if record.run not in shown:
                screen = JOB_SCREENS.get(record.kind, "jobs") if record.status == "done" else "jobs"
                line = partial(job_record_line, record, now=now)
                entries.append(Entry(f"run {record.run}", line, Target(screen)))
        self.query_one("#jobs", EntryList).show_entries(entries)

    def _show_gains(self) -> None:
        found = self._gains
        most, least = (found.most, found.least) if found is not None else ((), ())
        self.query_one("#gains").display = found is not None
        largest = max((abs(gain.gain) for gain in (*most, *least)), default=0.0)
        titles = ("Helped most", "Helped least")
        if found is not None:
            titles = (
                f"Helped most · {found.metric}, {found.source}",
                f"Helped least · {found.worse:,} of {found.measured:,} worse",
            )
        for name, title, gains in zip(("most", "least"), titles, (most, least), strict=True):
            self.query_one(f"#{name}", EntryList).show_entries(
                [
                    Entry(f"user {n}", partial(gain_line, gain, largest), Target("users", user=gain.user))
                    for n, gain in enumerate(gains)
                ],
                title,
            )


def _summary(overview: Overview) -> str:
    parts = [pluralise(overview.users, "user"), pluralise(overview.banks, "bank")]
    parts.append(f"{pluralise(overview.modelled, 'user')} with a model")
    parts.append(pluralise(overview.evaluations, "evaluation"))
    return " · ".join(parts)


def _next_entries(stage: str, user: str | None) -> Sequence[Entry]:
    """The entries of the list `Next`: the steps that a store at this stage needs, or uses of its models."""
    begin = (
        ("A file of your own", "is a personal model worth it for its users?", Target(form="quick")),
        ("Import histories", "mail, chats, tables; no training yet", Target(form="data import")),
    )
    offers = {
        "empty": (begin[0], ("Try the demo", "included sample users, a few minutes", Target(form="demo")), begin[1]),
        "no history": begin,
        "no bank": (("Build a bank", "the models of a few anchor users", Target(form="bank build")),),
        "no models": (("Adapt users", "their own models on the bank", Target(form="user adapt")),),
        "ready": (
            (f"Chat with {user}", "their own model answers", Target("chat", user=user)),
            (f"Compare {user}'s models", "base, common, fused and adapted side by side", Target("compare", user=user)),
            ("Evaluate methods", "which step of the ladder is worth it", Target(form="eval run")),
        ),
    }
    return [Entry(title, partial(action_line, title, about), target) for title, about, target in offers[stage]]
