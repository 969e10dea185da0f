"""Signals that ask a program to end. A program that has changed the terminal's mode first changes it back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)
)  # Windows has one of them


def exit_code_of(number: int) -> int:
    """The exit code of a program that a signal ended, as shells have it."""
    return 128 + number


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Inside, a signal that asks to end raises SystemExit, so that everything is closed on the way out."""
    before = {number: signal.signal(number, _raise_exit) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(exit_code_of(number))
