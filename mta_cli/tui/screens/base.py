"""What all rooms share: the bar of rooms, the footer, reading from the shelf, and help. Knows no room by itself."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import events, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Footer, Static

from mta_cli.tui.text import line_text

if TYPE_CHECKING:
    from mta_cli.tui.app import MtaApp

MIN_PALETTE_WIDTH = 100  # columns
SCREEN_TITLES = {
    "users": "Users",
    "compare": "Compare",
    "bank": "Bank",
    "jobs": "Jobs",
    "chat": "Chat",
    "results": "Results",
}


class ScreenTab(Static):
    """The name of a room; a click goes there."""

    def __init__(self, number: int, room: str, *, here: bool) -> None:
        super().__init__(line_text(f"{number} {SCREEN_TITLES[room]}"), classes="here" if here else "")
        self.screen_name = room

    def on_click(self) -> None:
        """Go to the room."""
        cast("MtaApp", self.app).show_screen(self.screen_name)


class ScreenTabBar(Horizontal):
    """All rooms, the chosen person, and whether a job runs."""

    def __init__(self, here: str) -> None:
        super().__init__()
        self._current_name = here
        self._status = Static(id="about")

    def compose(self) -> ComposeResult:
        """The tabs, then who and what."""
        for number, room in enumerate(SCREEN_TITLES, start=1):
            yield ScreenTab(number, room, here=room == self._current_name)
        yield self._status

    def update_status(self, person: str | None, running: str | None) -> None:
        """Say who is chosen and what runs."""
        parts = [part for part in (f"▶ {running}" if running else "", person or "") if part]
        self._status.update(line_text("  ".join(parts)))


class BaseScreen(Screen[None]):
    """A room. `reload` reads from the shelf and shows; everything else is each room's own."""

    SCREEN_NAME: ClassVar[str] = ""
    HELP: ClassVar[str] = ""

    @property
    def mta_app(self) -> MtaApp:
        """The window."""
        return cast("MtaApp", self.app)

    def compose(self) -> ComposeResult:
        """The bar, what the room holds, the keys."""
        yield ScreenTabBar(self.SCREEN_NAME)
        yield from self.compose_body()
        yield Footer()

    def compose_body(self) -> ComposeResult:
        """What stands between the bar and the footer."""
        yield from ()

    async def reload(self) -> None:
        """Read what the room shows and show it."""

    def reload_if_current(self) -> None:
        """What is shown may be old: read again, if anybody looks; a reading under way is dropped."""
        self.show_bar()
        if self.is_current:
            self._reload_in_worker()

    @work(group="reload", exclusive=True)
    async def _reload_in_worker(self) -> None:
        await self.await_or_show_error(self.reload())

    async def await_or_show_error(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`; what goes wrong is told in a dialog and ends nothing else."""
        try:
            await work
        except Exception as error:
            self.mta_app.show_error(error)

    @work(group="stays")
    async def open_job_form(self, kind: str) -> None:
        """Ask for a job, queue it, and go to where it is watched."""
        await self.await_or_show_error(self._queue_job_and_watch(kind))

    async def _queue_job_and_watch(self, kind: str) -> None:
        from mta_cli.tui.job_forms import queue_job_from_form

        if await queue_job_from_form(self.mta_app, kind) is not None:
            self.mta_app.show_screen("jobs")

    def show_bar(self) -> None:
        """Bring the bar up to date."""
        job = self.mta_app.job_queue.running_job
        for bar in self.query(ScreenTabBar):
            bar.update_status(self.mta_app.selected_user, job.kind if job else None)

    def help_for(self, widget: Widget | None) -> str:
        """Help on the focused widget, if it has any, and on the room."""
        own = getattr(widget, "HELP", "") if widget is not None else ""
        return "\n\n".join(part for part in (own, self.HELP) if part)

    def on_resize(self, event: events.Resize) -> None:
        """A narrow footer has room for the room's own keys only; the palette is one of those that F1 lists."""
        self.query_one(Footer).show_command_palette = event.size.width >= MIN_PALETTE_WIDTH

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """Somebody looks at the room again."""
        self.reload_if_current()
