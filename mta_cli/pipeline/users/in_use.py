"""Refuses or delays changes to a user whose data a running job uses. Does not use the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TypeVar

from mta_cli.errors import UserInUse
from mta_cli.events import Event, Note

T = TypeVar("T")
POLL_SECONDS = 0.5


def change_when_unused(change: Callable[[], T], *, wait: bool) -> Generator[Event, None, T]:
    """Run `change` and return its result. While a job uses the user, wait for the job's end.

    Without `wait`, raise UserInUse instead.
    """
    told = ""
    while True:
        try:
            return change()
        except UserInUse as error:
            if not wait:
                raise
            if str(error) != told:
                yield Note(f"{error} Waiting for its end.")
            told = str(error)
        time.sleep(POLL_SECONDS)
