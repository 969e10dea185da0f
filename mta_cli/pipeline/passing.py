"""A job inside a job: its events go on to whoever watches, its result comes back."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from mta_cli.events import Event, JobPlan, JobResult


def forward_events(events: Iterable[Event]) -> Generator[Event, None, Any]:
    """Pass a job's events on, without its plan and its end, and `return` its result."""
    result: Any = None
    for event in events:
        if isinstance(event, JobResult):
            result = event.result
        elif not isinstance(event, JobPlan):
            yield event
    return result
