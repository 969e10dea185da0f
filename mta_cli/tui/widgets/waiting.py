"""A line that shows what is being waited for, and for how long."""

from __future__ import annotations

import time

from textual.timer import Timer
from textual.widgets import Static

from mta_cli.tui.text import line_text

UPDATE_SECONDS = 0.5


class WaitingLine(Static):
    """Text such as "loading the base … 6 s" that counts the seconds of waiting; empty when idle."""

    DEFAULT_CSS = """
    WaitingLine { height: auto; display: none; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._what, self._since = "", 0.0
        self._timer: Timer | None = None

    def on_mount(self) -> None:
        """Start the timer that counts seconds."""
        self._timer = self.set_interval(UPDATE_SECONDS, self._show_seconds, pause=not self._what)

    def start(self, what: str) -> None:
        """Start waiting for `what`."""
        self._what, self._since = what, time.monotonic()
        self.display = True
        self._show_seconds()
        if self._timer is not None:
            self._timer.resume()

    def stop(self) -> None:
        """Stop waiting."""
        self._what = ""
        self.display = False
        if self._timer is not None:
            self._timer.pause()

    def _show_seconds(self) -> None:
        self.update(line_text(f"{self._what} … {int(time.monotonic() - self._since)} s"))
