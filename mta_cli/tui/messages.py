"""What is told inside the window. Knows no widget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from mta_cli.tui.workers.job_queue import Job


class StoreChanged(Message):
    """Something durable is new: whatever is shown may be old."""


class UserSelected(Message):
    """Rooms now work for another person, or for nobody."""


class JobUpdated(Message):
    """A job has another state, more progress or a longer log; at most eight a second."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
