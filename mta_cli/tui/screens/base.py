"""The base of all screens: the tab bar, the footer, reading from the store, and help."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static
from textual.worker import Worker, WorkerState

from mta_cli.tui.text import line_text

if TYPE_CHECKING:
    from mta_cli.tui.app import MtaApp
    from mta_cli.tui.workers.job_queue import Job

MIN_PALETTE_WIDTH = 100  # columns
USER_MARK = "●"  # marks the selected user in the bar, in the table of users and on the map
SCREEN_TITLES = {
    "home": "Home",
    "users": "Users",
    "compare": "Compare",
    "bank": "Bank",
    "jobs": "Jobs",
    "chat": "Chat",
    "results": "Results",
}


SCREEN_KEYS = {name: str(number) for number, name in enumerate(SCREEN_TITLES)}


def screen_class(name: str) -> type[BaseScreen]:
    """Import the module of a screen and return its class."""
    found: type[BaseScreen] = resolve_name(f"mta_cli.tui.screens.{name}:{SCREEN_TITLES[name]}Screen")
    return found


class ScreenTab(Static):
    """The title of a screen in the tab bar; a click shows the screen."""

    def __init__(self, name: str, *, here: bool) -> None:
        super().__init__(line_text(f"{SCREEN_KEYS[name]} {SCREEN_TITLES[name]}"), classes="here" if here else "")
        self.screen_name = name

    def on_click(self) -> None:
        """Show the screen."""
        cast("MtaApp", self.app).show_screen(self.screen_name)


class ScreenTabBar(Horizontal):
    """The bar with the titles of all screens, the selected user, and the running job."""

    def __init__(self, here: str) -> None:
        super().__init__()
        self._current_name = here
        self._user, self._job = Static(id="about"), Static(id="job")

    def compose(self) -> ComposeResult:
        """The tabs; at the right the job and the user."""
        for name in SCREEN_TITLES:
            yield ScreenTab(name, here=name == self._current_name)
        yield self._user
        yield self._job

    def update_status(self, user: str | None, running: str | None) -> None:
        """Show the selected user and the kind of the running job."""
        self._user.update(line_text(f"{USER_MARK} {user}" if user else ""))
        self._job.display = running is not None
        self._job.update(line_text(f"▶ {running}" if running else ""))


class BaseScreen(Screen[None]):
    """The base class of screens. `reload` reads from the store and shows the result."""

    SCREEN_NAME: ClassVar[str] = ""
    HELP: ClassVar[str] = ""
    _reload_again = False
    _error_shown_at: tuple[str | None, int] | None = None  # the window's state when reading failed last

    @property
    def mta_app(self) -> MtaApp:
        """The app, typed as `MtaApp`."""
        return cast("MtaApp", self.app)

    def compose(self) -> ComposeResult:
        """The bar, the body, the keys."""
        yield ScreenTabBar(self.SCREEN_NAME)
        yield from self.compose_body()
        yield Footer()

    def compose_body(self) -> ComposeResult:
        """The widgets between the bar and the footer."""
        yield from ()

    async def reload(self) -> None:
        """Read the screen's data from the store and show them."""

    def reload_if_current(self, *, finish_first: bool = False) -> None:
        """Read the data again if this screen is visible; otherwise that happens when it is shown next.

        A running reload is cancelled and started again; with `finish_first` it is finished first.
        """
        self.update_tab_bar()
        if finish_first and any(one.node is self and one.group == "reload" and one.is_running for one in self.workers):
            self._reload_again = True
        elif self.is_current and self.is_mounted:  # otherwise `on_screen_resume` will reload it
            self._reload_in_worker()

    @work(group="reload", exclusive=True, exit_on_error=False)
    async def _reload_in_worker(self) -> None:
        self._reload_again = True
        while self._reload_again:
            self._reload_again = False
            await self.reload()

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Show the error of a worker with `exit_on_error=False` in a dialog."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            if event.worker.group == "reload":
                self.show_reading_error(event.worker.error)
            else:
                self.mta_app.show_error(event.worker.error)

    def show_reading_error(self, error: BaseException) -> None:
        """Show in a dialog why the data could not be read. Closing the dialog reads again only if something changed."""
        self._error_shown_at = self._window_state
        self.mta_app.show_error(error)

    @property
    def _window_state(self) -> tuple[str | None, int]:
        return self.mta_app.selected_user, self.mta_app.store_changes

    @work(group="stays", exit_on_error=False)
    async def action_start(self, kind: str, **values: str) -> None:
        """Show the form of a kind of job, filled with `values`; if it is submitted, queue the job."""
        from mta_cli.tui.dialogs.job_forms import queue_job_from_form

        job = await queue_job_from_form(self.mta_app, kind, **values)
        if job is not None:
            self.show_queued_job(job)

    def show_queued_job(self, job: Job) -> None:
        """Open the Jobs screen for a job that was started here. Screens that show the job themselves override this."""
        self.mta_app.show_screen("jobs")

    def update_tab_bar(self) -> None:
        """Show the selected user and the running job."""
        job = self.mta_app.job_queue.running_job
        for bar in self.query(ScreenTabBar):
            bar.update_status(self.mta_app.selected_user, job.kind if job else None)

    def help_for(self, widget: Widget | None) -> str:
        """Help on the focused widget, if it has any, and on the screen."""
        own = getattr(widget, "HELP", "") if widget is not None else ""
        return "\n\n".join(part for part in (own, self.HELP) if part)

    def on_resize(self, event: events.Resize) -> None:
        """Hide the palette's key in a narrow footer; help (F1) lists it too."""
        self.query_one(Footer).show_command_palette = event.size.width >= MIN_PALETTE_WIDTH

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """Reload when the screen is shown again, except after the dialog of a reading error, if nothing has changed."""
        told, self._error_shown_at = self._error_shown_at, None
        if told == self._window_state:
            self.update_tab_bar()
        else:
            self.reload_if_current()
