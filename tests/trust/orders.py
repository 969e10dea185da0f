"""What a command under trial is told to suffer, and the process that obeys. Asserts nothing.

A *moment* is one call of the system that changes files, one statement of SQLite, or some hundred steps inside one.
Every process starts as a copy of one that has imported everything, so that a trial costs the command and not its start.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest.mock import patch

CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "chmod")
STEPS = 300  # of SQLite's machine between two moments
PATIENCE = 120.0  # seconds; a slower process counts as stuck
SHORT = -1  # instead of an error number: the call writes half of what it was given


@dataclass(frozen=True)
class Harm:
    """What happens to the command; nothing by default.

    `die_at`: the moment, counted from 1, before which it is killed; `die_at_call`: the same, of calls that change files
    alone. `die_after`: seconds after which it is killed. `fail_at`: the number of the call that fails with `error`.
    `limit`: the largest size of a file in bytes; a write beyond it fails, or kills the process if `deadly`. `pages`:
    how large the database may grow. `bound_by_modes`: the modes of files bind it even where the tests run as root.
    """

    die_at: int | None = None
    die_at_call: int | None = None
    die_after: float | None = None
    fail_at: int | None = None
    error: int = errno.EIO
    limit: int | None = None
    deadly: bool = False
    pages: int | None = None
    bound_by_modes: bool = False


NOTHING = Harm()


@dataclass(frozen=True)
class Order:
    """A command line, its variables and input, the folder it starts in, and the harm that it meets.

    What it says goes to the folder `said`. With `checkpoints`, trainings write one after every step.
    """

    arguments: tuple[str, ...]
    env: Mapping[str, str]
    stdin: bytes
    folder: Path
    said: Path
    harm: Harm
    checkpoints: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a command. `code` is minus the signal where one ended it."""

    code: int
    out: str
    err: str
    moments: int
    calls: tuple[str, ...]
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether it was ended from outside, in the middle of its work."""
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)

    def json(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


@dataclass
class Job:
    """A command at work."""

    process: Any
    said: Path
    harm: Harm
    started: float = field(default_factory=time.monotonic)

    def wait(self) -> Outcome:
        """Its outcome; it is an error of the test when there is none in time."""
        self.process.join(self.harm.die_after if self.harm.die_after is not None else PATIENCE)
        stuck = self.process.is_alive()
        if stuck:
            self.process.kill()
        self.process.join()
        assert not stuck or self.harm.die_after is not None, f"stuck after {PATIENCE:g} s"
        seconds = time.monotonic() - self.started
        noted = self.said / "moments.json"
        moments, calls = json.loads(noted.read_text()) if noted.exists() else (0, [])
        out, err = ((self.said / name).read_text(errors="replace") for name in ("out", "err"))
        return Outcome(self.process.exitcode, out, err, moments, tuple(calls), seconds)


def crew() -> ForkServerContext:
    """Where processes come from. The first one waits for the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.trust.ready"])
    return context


def begin(context: ForkServerContext, order: Order) -> Job:
    """Start a command."""
    order.said.mkdir(parents=True)
    for name in ("out", "err"):
        (order.said / name).touch()
    (order.said / "in").write_bytes(order.stdin)
    process = context.Process(target=_obey, args=(order,))
    process.start()
    return Job(process, order.said, order.harm)


def _obey(order: Order) -> None:
    os.environ.update(order.env)
    os.chdir(order.folder)
    for number, name, flags in ((0, "in", os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        os.dup2(os.open(order.said / name, flags), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    from mta_cli.app import main
    from mta_cli.engine.training import session

    if order.checkpoints:
        session.MIN_CHECKPOINT_SECONDS, session.MIN_CHECKPOINT_COST_RATIO = 0.0, 0
    watch = _Watch(order.harm)
    _limit(order.harm)
    code: Any = 0
    try:
        with watch.over(), patch.object(sys, "argv", ["mta", *order.arguments]):
            main()
    except SystemExit as left:
        code = left.code
    noted = order.said / "moments"  # takes its name when it is whole: a kill may come meanwhile
    noted.write_text(json.dumps([watch.moments, watch.calls]))
    noted.rename(noted.with_suffix(".json"))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _limit(harm: Harm) -> None:
    if harm.bound_by_modes and os.geteuid() == 0:
        _give_up_rights()
    if harm.limit is None:
        return
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if harm.deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (harm.limit, resource.RLIM_INFINITY))


def _give_up_rights() -> None:
    """Drop every capability of root, so that the modes of files hold (capset of Linux, version 3 of its header)."""
    import ctypes

    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capset(header, none) == 0, os.strerror(ctypes.get_errno())


class _Watch:
    """Counts the moments of this process and does the harm at its own."""

    def __init__(self, harm: Harm) -> None:
        self.harm, self.moments, self.calls = harm, 0, list[str]()

    def over(self) -> Any:
        from contextlib import ExitStack

        stack = ExitStack()
        for name in CALLS:
            stack.enter_context(patch.object(os, name, self._watched(name, getattr(os, name))))
        stack.enter_context(patch.object(sqlite3, "connect", self._connecting(sqlite3.connect)))
        return stack

    def _moment(self, *_: object) -> None:
        self.moments += 1
        if self.moments == self.harm.die_at or len(self.calls) == self.harm.die_at_call:
            os.kill(os.getpid(), signal.SIGKILL)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
                return call(*arguments, **named)
            self.calls.append(name)
            self._moment()
            if len(self.calls) != self.harm.fail_at:
                return call(*arguments, **named)
            if self.harm.error != SHORT:
                raise OSError(self.harm.error, os.strerror(self.harm.error))
            return call(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])

        return watched

    def _connecting(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connecting(*arguments: Any, **named: Any) -> sqlite3.Connection:
            conn = connect(*arguments, **named)
            if arguments[0] != ":memory:":
                if self.harm.pages is not None:
                    conn.execute(f"PRAGMA max_page_count = {self.harm.pages}")
                conn.set_trace_callback(self._moment)
                conn.set_progress_handler(self._moment, STEPS)
            return conn

        return connecting
