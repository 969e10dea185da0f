"""A job inside a job: its events go on to whoever watches, its result comes back."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any

from mta_cli.events import Done, Event, Planned


def passed_on(events: Iterable[Event]) -> Generator[Event, None, Any]:
    """Pass a job's events on, without its plan and its end, and `return` its result."""
    result: Any = None
    for event in events:
        if isinstance(event, Done):
            result = event.result
        elif not isinstance(event, Planned):
            yield event
    return result
