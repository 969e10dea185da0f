"""Lets termination signals end the program by an exception, so that the terminal's mode is restored first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)  # Windows has only one of them


def exit_code_of(number: int) -> int:
    """The exit code of a program that this signal ended, as shells define it."""
    return 128 + number


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """In the block, a termination signal raises SystemExit, so that everything opened is closed."""
    before = {number: signal.signal(number, _raise_exit) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(exit_code_of(number))
