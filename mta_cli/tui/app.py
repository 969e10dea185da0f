"""The window: its screens, the selected user, jobs, the model, errors and closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.constants import DEFAULT_THEME
from textual.filter import LineFilter
from textual.screen import Screen, SystemModalScreen

from mta_cli.configuration.settings import Settings, StoreOptions
from mta_cli.errors import MtaError, NotFound
from mta_cli.events import ItemKept
from mta_cli.options import ModelOptions
from mta_cli.terminal.signals import ENDING_SIGNALS, exit_code_of
from mta_cli.tui.command_palette import CommandProvider
from mta_cli.tui.dialogs.basic import ClosingDialog, ConfirmDialog, ErrorDialog, HelpDialog
from mta_cli.tui.screens.base import SCREEN_KEYS, SCREEN_TITLES, BaseScreen, screen_class
from mta_cli.tui.text import PrintableFilter
from mta_cli.tui.window_state import WindowState
from mta_cli.tui.workers.job_queue import Job, JobQueue, JobUpdated
from mta_cli.tui.workers.model_worker import ModelWorker
from mta_cli.tui.workers.store_thread import StoreThread
from mta_cli.tui.workers.undo import plan_undo, undo


def _make_screen(name: str) -> Screen[Any]:
    """Make a screen on first use, because importing all screens at the start would take half a second."""
    return screen_class(name)()


# Textual's private table turns Alt and a digit into a character of a Mac keyboard ("¡" for Alt+1). Without these
# entries Alt+1 is a key, which can show a screen even while the user types. If Textual removes the table, a digit
# without Alt still shows a screen, but not while an input has the focus.
with suppress(ImportError, AttributeError):
    from textual._ansi_sequences import ANSI_SEQUENCES_KEYS

    for _digit in "0123456789":
        cast("dict[str, object]", ANSI_SEQUENCES_KEYS).pop(f"\x1b{_digit}", None)

_SCREEN_BINDINGS = [
    Binding(
        f"{SCREEN_KEYS[name]},alt+{SCREEN_KEYS[name]}",
        f"show_screen('{name}')",
        title,
        id=f"app.{name}",
        show=False,
        tooltip=f"Go to {title}; with alt also while typing",
    )
    for name, title in SCREEN_TITLES.items()
]


class MtaApp(App[None]):
    """The window: all screens on one store, with one selected user."""

    TITLE = "mta"
    CSS_PATH = "app.tcss"
    COMMANDS = App.COMMANDS | {CommandProvider}
    MODES: ClassVar[dict[str, str | Callable[[], Screen[Any]]]] = {
        name: partial(_make_screen, name) for name in SCREEN_TITLES
    }
    DEFAULT_MODE = "home"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]  # noqa: RUF012 - Textual declares no ClassVar
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f1", "help", "Help", id="app.help", priority=True, tooltip="Help on what has the focus, also in a form"
        ),
        *_SCREEN_BINDINGS,
        Binding("z", "zoom", "Enlarge", id="app.zoom", show=False, tooltip="Enlarge the pane with the focus, or back"),
        Binding(
            "u", "undo", "Undo", id="app.undo", show=False, tooltip="Undo keeping the last answer as a history item"
        ),
        Binding("ctrl+t", "change_theme", "Theme", id="app.theme", show=False, tooltip="Choose another theme"),
        Binding("q", "quit", "Quit", id="app.quit", tooltip="Close the window; asks while a job runs"),
        Binding(
            "ctrl+q",
            "quit",
            "Quit",
            id="app.quit-anywhere",
            show=False,
            priority=True,
            tooltip="Close the window, also while typing",
        ),
    ]

    def __init__(self, store: Path, settings: Settings) -> None:
        super().__init__()
        timeout = settings.build_options(StoreOptions).timeout
        self.settings, self.model_options = settings, settings.build_options(ModelOptions)
        self.store_thread = StoreThread(store, timeout)
        self.profile_thread = StoreThread(store, timeout)  # its own thread, because reading profiles takes seconds
        self.job_queue = JobQueue(self, store, timeout)
        chosen = settings.origins["models.base"] != "default"
        self.model_worker = ModelWorker(self, store, timeout, self.model_options.base, chosen=chosen)
        self._printable = PrintableFilter()
        self._kept: list[ItemKept] = []  # history items kept in this window and not undone yet, newest last
        self._undo_job: Job | None = None
        self.store_thread.on_kept = self.model_worker.on_kept = self._kept.append
        self.selected_user: str | None = None
        self.selected_task: str | None = None
        self.chat_to_open: int | None = None  # the conversation that Chat continues when it is shown next
        self.store_changes = 0  # the number of times that jobs have saved something
        self._saved_state = WindowState.load(store)

    def on_mount(self) -> None:
        """Restore the last window's state. A termination signal closes the window properly."""
        saved = self._saved_state
        if saved.theme in self.available_themes:
            self.theme = saved.theme
        if saved.screen in SCREEN_TITLES:
            self.show_screen(saved.screen)
        if saved.user_id is not None:
            self._select_saved_user(saved.user_id)
        for number in ENDING_SIGNALS:
            with suppress(NotImplementedError, RuntimeError):  # Windows, or not in the main thread
                asyncio.get_running_loop().add_signal_handler(number, self._exit_on_signal, number)

    @work
    async def _select_saved_user(self, user_id: int) -> None:
        with suppress(MtaError):  # the user may have been removed; the screen reports a store that cannot be read
            user = await self.store_thread.run(lambda reg: reg.users.by_id(user_id))
            if self.selected_user is None:
                self.select_user(user.name)

    def _exit_on_signal(self, number: int) -> None:
        self._stop_threads()
        self.exit(return_code=exit_code_of(number))

    async def on_unmount(self) -> None:
        """Stop all threads, however the window ends, and save its state for the next one."""
        self._stop_threads()
        name, user_id = self.selected_user, None
        if name is not None:
            with suppress(MtaError):
                user_id = (await self.store_thread.run(lambda reg: reg.users.get(name))).id
        theme = "" if self.theme == DEFAULT_THEME else self.theme
        state = WindowState(theme, self.current_mode if self.current_mode in SCREEN_TITLES else "", user_id)
        if state != self._saved_state:
            state.save(self.store_thread.root)
        await self.store_thread.close()
        await self.profile_thread.close()

    def get_line_filters(self) -> Sequence[LineFilter]:
        """The filter that removes control characters, then Textual's own filters."""
        return [self._printable, *super().get_line_filters()]

    @property
    def current_screen(self) -> BaseScreen | None:
        """The visible screen, also while a dialog is open over it."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, BaseScreen)), None)

    def select_user(self, name: str | None) -> None:
        """Select a user for all screens; None for no user."""
        self.selected_user = name
        self._reload_current_screen()

    def select_task(self, name: str | None) -> None:
        """Show only this task on all screens; None shows all tasks."""
        self.selected_task = name
        self._reload_current_screen()

    def show_screen(self, name: str) -> None:
        """Show the screen with this name."""
        self.switch_mode(name)

    def show_error(self, error: BaseException) -> None:
        """Show an error in a dialog."""
        self.push_screen(ErrorDialog(error))

    def notify_if_failed(self, job: Job) -> None:
        """Show a notification if the job failed and the current screen does not show jobs."""
        if job.state == "failed" and self.current_mode not in ("home", "jobs"):
            self.notify(f"{job.kind} {job.title}: failed; press 4 to see why", severity="error", markup=False)

    async def confirm(self, question: str) -> bool:
        """Ask a question in a dialog; returns whether the answer is yes. Await it in a worker."""
        answer: bool = await self.push_screen_wait(ConfirmDialog(question))
        return answer

    def copy_to_clipboard(self, text: str) -> None:
        """Copy a text to the clipboard and show a notification."""
        super().copy_to_clipboard(text)
        self.notify("copied", markup=False, timeout=2)

    @work(group="stays", exit_on_error=False)
    async def run_screen_action(self, name: str, action: str) -> None:
        """Show a screen, wait until it has read the store, and run one of its actions."""
        await self.switch_mode(name)
        screen = self.screen
        if isinstance(screen, BaseScreen):
            await screen.reload()
        if not await self.run_action(action, screen):
            self.notify("this action has nothing to act on yet", markup=False)

    def action_zoom(self) -> None:
        """Maximise the focused pane, or restore the others."""
        screen = self.screen
        if not isinstance(screen, BaseScreen):
            return
        if screen.maximized is not None:
            screen.minimize()
        elif self.focused is None or not screen.maximize(self.focused):
            self.notify("focus a pane with Tab first; z enlarges it", markup=False)

    @work(group="stays")
    async def action_undo(self) -> None:
        """Undo the last kept answer. Asks first if models were made from it since."""
        if not isinstance(self.screen, BaseScreen):
            return
        if self._undo_job is not None and not self._undo_job.finished:
            self.notify("wait: the last undo is still running", markup=False)
            return
        if not self._kept:
            self.notify("nothing to undo: no answer was kept in this window", markup=False)
            return
        kept = self._kept[-1]
        try:
            item, effects = await self.store_thread.run(partial(plan_undo, kept=kept))
        except NotFound:
            self._kept.remove(kept)
            self.notify("nothing to undo: the answer that was kept last is removed already", markup=False)
            return
        except MtaError as error:
            self.show_error(error)
            return
        waits = self.job_queue.has_unfinished_jobs
        goes = [*effects, *(["what unfinished jobs make from it"] if waits else [])]
        question = f"Remove {item}? What was made from it is removed too:\n\n" + "\n".join(goes)
        if goes and not await self.confirm(question):
            return
        end = partial(self._handle_undo_end, kept, item)
        self._undo_job = self.job_queue.add_job("undo", item, partial(undo, kept=kept), end)
        if waits:
            self.notify("queued: the undo runs when the jobs before it have ended", markup=False)

    def _handle_undo_end(self, kept: ItemKept, item: str, job: Job) -> None:
        """Show the undo's error; after a success, remove `kept` from the answers that can be undone, and notify."""
        if job.error is not None:
            self.show_error(job.error)
        elif job.state == "done":
            self._kept.remove(kept)
            self.notify(f"undone: {item}", markup=False)

    def action_show_screen(self, name: str) -> None:
        """Show a screen by its key, unless a dialog is open."""
        if isinstance(self.screen, BaseScreen):
            self.show_screen(name)

    def action_help(self) -> None:
        """Show help on the focused widget; if help is open, close it."""
        from mta_cli.tui.dialogs.form import FormDialog

        screen = self.screen
        if isinstance(screen, HelpDialog):
            screen.dismiss()
        elif not isinstance(screen, SystemModalScreen):  # such as Textual's palette
            text = screen.help_for(self.focused) if isinstance(screen, BaseScreen | FormDialog) else ""
            self.push_screen(HelpDialog(text, self._list_active_keys()))

    def _list_active_keys(self) -> list[tuple[str, str]]:
        """The active keys with their descriptions: first the screen's keys, then the window's, then Textual's own."""
        bindings = [active.binding for active in self.screen.active_bindings.values() if active.binding.description]
        bindings.sort(key=lambda binding: 2 if binding.id is None else binding.id.startswith("app."))
        about: dict[str, list[str]] = {}
        for binding in bindings:
            about.setdefault(binding.tooltip or binding.description, []).append(self.get_key_display(binding))
        return [(" ".join(dict.fromkeys(keys)), what) for what, keys in about.items()]

    async def action_quit(self) -> None:
        """Close the window; asks first if a job runs. An open question must be answered first."""
        if not isinstance(self.screen, (ConfirmDialog, ClosingDialog)):
            self._close_after_threads()

    @work
    async def _close_after_threads(self) -> None:
        job = self.job_queue.running_job
        if job is not None:
            waiting = [f"{one.kind} · {one.title}" for one in self.job_queue.jobs if one.state == "waiting"]
            lost = "\n".join(["\n\nThese waiting jobs will not run:", *waiting]) if waiting else ""
            question = f"{job.kind} · {job.title} is running. Close anyway? {job.stop_note}{lost}"
            if not await self.confirm(question):
                return
        job = self.job_queue.running_job
        if job is not None or self.model_worker.has_pending_requests:
            self.push_screen(ClosingDialog("the answer" if job is None else f"{job.kind} · {job.title}"))
        self._stop_threads()
        threads = [worker for worker in self.workers if worker.group in (JobQueue.GROUP, ModelWorker.GROUP)]
        if threads:
            await self.workers.wait_for_complete(threads)
        self.exit()

    def _stop_threads(self) -> None:
        self.job_queue.close()
        self.model_worker.close()

    def on_job_updated(self, message: JobUpdated) -> None:
        """Show a job's change on the current screen; if it saved something, the screen reads the store again."""
        job, screen = message.job, self.current_screen
        saved = bool(job.unreported_saves) or job.finished
        if saved:
            job.unreported_saves = 0
            self.store_changes += 1
        if screen is not None:
            screen.update_tab_bar()
            screen.post_message(JobUpdated(job))
            if saved:
                screen.reload_if_current(finish_first=True)

    def _reload_current_screen(self) -> None:
        if self.current_screen is not None:
            self.current_screen.reload_if_current()
