"""The window: rooms, the chosen person, jobs, the speaker, errors and leaving. Knows no room from inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from mta_cli.settings import ModelOptions, Settings, StoreOptions
from mta_cli.tui.dialogs import Help, Sure, Trouble
from mta_cli.tui.messages import JobMoved, PersonChosen, StoreChanged
from mta_cli.tui.palette import Commands
from mta_cli.tui.screens.base import ROOMS, Room
from mta_cli.tui.text import Printable
from mta_cli.tui.workers.job_queue import JobBoard
from mta_cli.tui.workers.model_worker import Speaker
from mta_cli.tui.workers.store_reader import Shelf

if TYPE_CHECKING:
    from mta_cli.tui.forms import Form

JOBS_EVERY, WORDS_EVERY = 1 / 8, 1 / 30  # seconds between two looks at what threads have said


def _users() -> Screen[Any]:
    from mta_cli.tui.screens.users import UsersRoom

    return UsersRoom()


def _compare() -> Screen[Any]:
    from mta_cli.tui.screens.compare import CompareRoom

    return CompareRoom()


def _bank() -> Screen[Any]:
    from mta_cli.tui.screens.bank import BankRoom

    return BankRoom()


def _jobs() -> Screen[Any]:
    from mta_cli.tui.screens.jobs import JobsRoom

    return JobsRoom()


def _chat() -> Screen[Any]:
    from mta_cli.tui.screens.chat import ChatRoom

    return ChatRoom()


def _results() -> Screen[Any]:
    from mta_cli.tui.screens.results import ResultsRoom

    return ResultsRoom()


# Textual takes Alt with a digit for the sign that a Mac's keyboard has there, which never comes as Alt and digit.
with suppress(ImportError, AttributeError):  # a table of its own, which a later Textual may have elsewhere
    from textual._ansi_sequences import ANSI_SEQUENCES_KEYS

    for _digit in "0123456789":
        cast("dict[str, object]", ANSI_SEQUENCES_KEYS).pop(f"\x1b{_digit}", None)

_ROOM_KEYS = [
    Binding(
        f"{number},alt+{number}",
        f"go('{room}')",
        title,
        id=f"app.{room}",
        show=False,
        tooltip=f"Go to {title}; with alt also while typing",
    )
    for number, (room, title) in enumerate(ROOMS.items(), start=1)
]


class MtaApp(App[None]):
    """The whole registry in one window. `close` after `run` waits for the job at work to keep what it can."""

    TITLE = "mta"
    CSS_PATH = "app.tcss"
    COMMANDS = App.COMMANDS | {Commands}
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        "users": _users,
        "compare": _compare,
        "bank": _bank,
        "jobs": _jobs,
        "chat": _chat,
        "results": _results,
    }
    DEFAULT_MODE = "users"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - declared by Textual as no ClassVar
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="app.help", tooltip="Help on what has the focus"),
        *_ROOM_KEYS,
        Binding("ctrl+t", "change_theme", "Theme", id="app.theme", show=False, tooltip="Choose other colours"),
        Binding("q", "leave", "Quit", id="app.quit", tooltip="Close the window; asks while a job runs"),
        Binding(
            "ctrl+q",
            "leave",
            "Quit",
            id="app.quit-anywhere",
            show=False,
            priority=True,
            tooltip="Close the window, also while typing",
        ),
    ]

    def __init__(self, store: Path, settings: Settings) -> None:
        super().__init__()
        timeout = settings.build(StoreOptions).timeout
        self.settings, self.models = settings, settings.build(ModelOptions)
        self.shelf = Shelf(store, timeout)
        self.board = JobBoard(store, timeout)
        self.speaker = Speaker(store, timeout, self.models.base)
        self._printable = Printable()
        self.chosen: str | None = None
        self.chosen_task: str | None = None

    def on_mount(self) -> None:
        """Look at what threads say, a few times a second."""
        self.set_interval(JOBS_EVERY, self._hear_jobs)
        self.set_interval(WORDS_EVERY, self.speaker.drain)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's own, after ours."""
        return [self._printable, *super().get_line_filters()]

    def close(self) -> None:
        """Let threads end: jobs keep checkpoints, talks stop, the store is closed."""
        self.board.close()
        self.speaker.close()
        self.shelf.close()

    @property
    def room(self) -> Room | None:
        """The room that is shown, below any dialog."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, Room)), None)

    def choose(self, name: str | None) -> None:
        """Work for this person from here on."""
        self.chosen = name
        self._tell(PersonChosen())

    def choose_task(self, name: str | None) -> None:
        """Show this task alone; None shows all."""
        self.chosen_task = name
        self._tell(StoreChanged())

    def go(self, room: str) -> None:
        """Show a room."""
        self.switch_mode(room)

    def fail(self, error: BaseException) -> None:
        """Tell what went wrong."""
        self.push_screen(Trouble(error))

    async def sure(self, question: str) -> bool:
        """Whether the person says yes; await it in a worker."""
        answer: bool = await self.push_screen_wait(Sure(question))
        return answer

    async def fill(self, form: Form) -> dict[str, str] | None:
        """What was filled in, or None; await it in a worker."""
        from mta_cli.tui.forms import FormDialog

        filled: dict[str, str] | None = await self.push_screen_wait(FormDialog(form))
        return filled

    def action_go(self, room: str) -> None:
        """Show a room, by key; not over a dialog."""
        if isinstance(self.screen, Room):
            self.go(room)

    def action_help(self) -> None:
        """Help on what has the focus."""
        room = self.room
        if isinstance(self.screen, Help) or room is None:
            return
        self.push_screen(Help(room.help_for(self.focused), self._keys()))

    def _keys(self) -> list[tuple[str, str]]:
        """The keys that work now, and what each does: the room's, the window's, then those of Textual's own widgets."""
        bindings = [active.binding for active in self.screen.active_bindings.values() if active.binding.description]
        bindings.sort(key=lambda binding: 2 if binding.id is None else binding.id.startswith("app."))
        about: dict[str, list[str]] = {}
        for binding in bindings:
            about.setdefault(binding.tooltip or binding.description, []).append(self.get_key_display(binding))
        return [(" ".join(dict.fromkeys(keys)), what) for what, keys in about.items()]

    @work
    async def action_leave(self) -> None:
        """Close the window, unless a job runs and the person would rather stay; a question is answered first."""
        if isinstance(self.screen, Sure):
            return
        job = self.board.running
        if job is None or await self.sure(
            f"{job.kind} · {job.title} is at work. Close all the same? It stops after the step at hand and goes on "
            "when it is started again."
        ):
            self.exit()

    def _hear_jobs(self) -> None:
        moved = self.board.drain()
        for job in moved:
            self._tell(JobMoved(job))
        if any(job.saved or job.over for job in moved):
            for job in moved:
                job.saved = 0
            self._tell(StoreChanged())

    def _tell(self, message: JobMoved | StoreChanged | PersonChosen) -> None:
        """Pass a message to the room that is shown; the others read again when they are."""
        room = self.room
        if room is None:
            return
        if not isinstance(message, JobMoved):
            room.stale()
        room.show_bar()
        room.post_message(message)
