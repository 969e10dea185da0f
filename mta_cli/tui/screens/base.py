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

from mta_cli.tui.text import line

if TYPE_CHECKING:
    from mta_cli.tui.app import MtaApp

ROOMY = 100  # columns
ROOMS = {"users": "Users", "compare": "Compare", "bank": "Bank", "jobs": "Jobs", "chat": "Chat", "results": "Results"}


class RoomTab(Static):
    """The name of a room; a click goes there."""

    def __init__(self, number: int, room: str, *, here: bool) -> None:
        super().__init__(line(f"{number} {ROOMS[room]}"), classes="here" if here else "")
        self.room = room

    def on_click(self) -> None:
        """Go to the room."""
        cast("MtaApp", self.app).go(self.room)


class RoomBar(Horizontal):
    """All rooms, the chosen person, and whether a job runs."""

    def __init__(self, here: str) -> None:
        super().__init__()
        self._here = here

    def compose(self) -> ComposeResult:
        """The tabs, then who and what."""
        for number, room in enumerate(ROOMS, start=1):
            yield RoomTab(number, room, here=room == self._here)
        yield Static(id="about")

    def show(self, person: str | None, running: str | None) -> None:
        """Say who is chosen and what runs."""
        parts = [part for part in (f"▶ {running}" if running else "", person or "") if part]
        self.query_one("#about", Static).update(line("  ".join(parts)))


class Room(Screen[None]):
    """A room. `reload` reads from the shelf and shows; everything else is each room's own."""

    ROOM: ClassVar[str] = ""
    HELP: ClassVar[str] = ""

    @property
    def home(self) -> MtaApp:
        """The window."""
        return cast("MtaApp", self.app)

    def compose(self) -> ComposeResult:
        """The bar, what the room holds, the keys."""
        yield RoomBar(self.ROOM)
        yield from self.furnish()
        yield Footer()

    def furnish(self) -> ComposeResult:
        """What stands between the bar and the footer."""
        yield from ()

    async def reload(self) -> None:
        """Read what the room shows and show it."""

    def stale(self) -> None:
        """What is shown may be old: read again, if anybody looks; a reading under way is dropped."""
        self.show_bar()
        if self.is_current:
            self._read_again()

    @work(group="reload", exclusive=True)
    async def _read_again(self) -> None:
        await self.guarded(self.reload())

    async def guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Await `work`; what goes wrong is told in a dialog and ends nothing else."""
        try:
            await work
        except Exception as error:
            self.home.fail(error)

    @work(group="stays")
    async def ask_for(self, kind: str) -> None:
        """Ask for a job, queue it, and go to where it is watched."""
        await self.guarded(self._asked_for(kind))

    async def _asked_for(self, kind: str) -> None:
        from mta_cli.tui.job_forms import ask_and_start

        if await ask_and_start(self.home, kind) is not None:
            self.home.go("jobs")

    def show_bar(self) -> None:
        """Bring the bar up to date."""
        job = self.home.board.running
        for bar in self.query(RoomBar):
            bar.show(self.home.chosen, job.kind if job else None)

    def help_for(self, widget: Widget | None) -> str:
        """Help on the focused widget, if it has any, and on the room."""
        own = getattr(widget, "HELP", "") if widget is not None else ""
        return "\n\n".join(part for part in (own, self.HELP) if part)

    def on_resize(self, event: events.Resize) -> None:
        """A narrow footer has room for the room's own keys only; the palette is one of those that F1 lists."""
        self.query_one(Footer).show_command_palette = event.size.width >= ROOMY

    def on_screen_resume(self, event: events.ScreenResume) -> None:
        """Somebody looks at the room again."""
        self.stale()
