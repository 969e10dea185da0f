"""Messages inside the window, each to one receiver. Knows no widget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from mta_cli.tui.workers.job_queue import Job


class StoreChanged(Message, bubble=False):
    """Something was saved: what is shown may be old."""


class UserSelected(Message, bubble=False):
    """Another user was selected, or none."""


class JobUpdated(Message, bubble=False):
    """A job has another state, more progress or a longer log. The queue tells the app, the app the current screen."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
