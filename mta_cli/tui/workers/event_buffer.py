"""Passes events from a thread worker to the window in batches, so that neither waits for the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.worker import get_current_worker

from mta_cli.events import Event

if TYPE_CHECKING:
    from textual.app import App

MAX_BUFFERED = 5000  # events; a thread with more unhandled events waits for the window


class EventBuffer:
    """Collects events of a thread and passes them to `handle` in the window's thread, after `seconds`."""

    def __init__(self, app: App[Any], handle: Callable[[list[Event]], None], seconds: float) -> None:
        self._app, self._handle, self._seconds = app, handle, seconds
        self._events: deque[Event] = deque()
        self._flush_planned = False

    def put(self, event: Event) -> None:
        """Add an event; called in the thread worker. Once the window is closed, events are dropped."""
        if get_current_worker().is_cancelled:
            return
        self._events.append(event)
        if len(self._events) > MAX_BUFFERED:
            self._app.call_from_thread(self.flush)
        elif not self._flush_planned:
            self._flush_planned = True
            self._app.call_later(self._app.set_timer, self._seconds, self.flush)

    def flush(self) -> None:
        """Handle all collected events; called in the window's thread."""
        self._flush_planned = False
        if waiting := [self._events.popleft() for _ in range(len(self._events))]:
            self._handle(waiting)
