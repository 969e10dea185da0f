"""A real terminal for tests: `mta` behind a pseudo-terminal, its screen as an emulator shows it, every byte kept."""

from __future__ import annotations

import os
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pexpect
import pyte

PATIENCE = 120.0  # seconds
DRAIN = 5.0  # seconds in which the system hands over what a program wrote just before it ended; its end comes last
KEYS = {
    "enter": "\r",
    "escape": "\x1b",
    "tab": "\t",
    "down": "\x1b[B",
    "up": "\x1b[A",
    "f1": "\x1bOP",
    "ctrl+p": "\x10",
    "ctrl+u": "\x15",
    "backspace": "\x7f",
}


class Terminal:
    """`mta ARGUMENTS` in a terminal of `columns` × `rows`. Use it in a `with` statement."""

    def __init__(
        self, arguments: Sequence[str], columns: int = 80, rows: int = 24, env: Mapping[str, str] | None = None
    ) -> None:
        settings = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "PYTHONPATH": str(Path(__file__).parents[1]),
            **(env or {}),
        }
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self.bytes = b""
        self.echoes = False  # once it has ended: whether the terminal shows what is typed, as a shell needs
        self.started = time.monotonic()
        self._child = pexpect.spawn(
            sys.executable, ["-m", "mta_cli", *arguments], dimensions=(rows, columns), env=settings, timeout=PATIENCE
        )

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._child.close(force=True)

    @property
    def pid(self) -> int:
        """The process behind the terminal."""
        return int(self._child.pid)

    @property
    def clock(self) -> float:
        """Seconds since the program was started."""
        return time.monotonic() - self.started

    def type(self, text: str) -> None:
        """Type characters."""
        self._child.send(text)

    def press(self, *keys: str) -> None:
        """Press keys, by name or as themselves."""
        for key in keys:
            self._child.send(KEYS.get(key, key))
            self.look(0.5 if key == "escape" else 0.05)  # so that it does not begin a sequence

    def look(self, seconds: float = 0.0) -> str:
        """The screen, a line a row, after what comes within `seconds`; sooner where nothing can come any more."""
        end = time.monotonic() + seconds
        while True:
            try:
                chunk = self._child.read_nonblocking(65536, timeout=max(0.001, min(0.05, end - time.monotonic())))
                self.bytes += chunk
                self._stream.feed(chunk)
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                break
            if time.monotonic() >= end:
                break
        return "\n".join(line.rstrip() for line in self._screen.display)

    def until(self, seen: str | Callable[[str], bool], patience: float = PATIENCE) -> float:
        """Wait until a text is on the screen; returns the seconds since the start of the program."""
        true = seen if callable(seen) else lambda screen: seen in screen
        end = time.monotonic() + patience
        alive = True
        while not true(screen := self.look(0.01 if alive else DRAIN)):
            if time.monotonic() > end or not alive:
                raise AssertionError(f"{seen!r} never stood on the screen:\n{screen}")
            alive = self._child.isalive()
        return self.clock

    def ended(self, patience: float = PATIENCE) -> int:
        """Wait until the program has ended; returns its exit code."""
        end = time.monotonic() + patience
        while self._child.isalive():
            self.look(0.02)
            if time.monotonic() > end:
                raise AssertionError(f"it did not end:\n{self.look()}")
        self.look(DRAIN)
        self.echoes = bool(termios.tcgetattr(self._child.fileno())[3] & termios.ECHO)
        self._child.close()
        return int(self._child.exitstatus if self._child.exitstatus is not None else -1)
