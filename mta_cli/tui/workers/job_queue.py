"""Jobs of the window: queued, run one at a time in a thread, watched, stopped. Knows neither widgets nor what jobs do.

A thread puts events into a queue and touches nothing else; the window empties the queue several times a second, so no
flood of steps ever becomes a flood of repaints.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mta_cli.errors import BadInput, MtaError
from mta_cli.events import Done, Event, Failed, Note, Saved, Started, Step
from mta_cli.printable import clean, clean_line

if TYPE_CHECKING:
    from store.registry import Registry

State = Literal["waiting", "running", "done", "failed", "stopped"]
Make = Callable[["Registry"], Iterator[Event]]
LOG_LINES, LOSSES = 2000, 4000  # kept of a job, the newest


@dataclass
class Progress:
    """How far a job is. `left`: seconds, as far as can be told."""

    done: int = 0
    total: int | None = None
    unit: str = "steps"
    label: str = ""
    losses: list[float] = field(default_factory=list)
    tokens_per_second: float | None = None
    left: float | None = None


@dataclass(eq=False)
class Job:
    """Something long that was asked for. `log` holds cleaned lines. `saved` counts what became durable."""

    number: int
    kind: str
    title: str
    make: Make
    state: State = "waiting"
    started: float | None = None
    ended: float | None = None
    progress: Progress = field(default_factory=Progress)
    log: list[str] = field(default_factory=list)
    error: BaseException | None = None
    result: Any = None
    saved: int = 0
    stop_asked: threading.Event = field(default_factory=threading.Event)
    _pace: _Pace | None = None

    @property
    def over(self) -> bool:
        """Whether it has come to an end, of whatever kind."""
        return self.state in ("done", "failed", "stopped")

    def take(self, event: Event) -> None:
        """Let an event of the job's generator change what is shown of it."""
        if isinstance(event, Started):
            self.progress = Progress(0, event.total, event.unit, "", self.progress.losses)
            self._pace = None
        elif isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Saved):
            self.saved += 1
            self.say(f"saved {event.kind} {event.name}" + (f" ({event.detail})" if event.detail else ""))
        elif isinstance(event, Note):
            self.say(f"warning: {event.text}" if event.warning else event.text)
        elif isinstance(event, Failed):
            self.say(f"{event.label} failed: {event.message}")
        elif isinstance(event, Done):
            self.result = event.result

    def say(self, text: str) -> None:
        """Add lines to the log."""
        self.log += clean(text).splitlines() or [""]
        del self.log[:-LOG_LINES]

    def fail(self, error: BaseException) -> None:
        """Say in the log what went wrong, in the command line's words."""
        self.error = error
        message = error.message if isinstance(error, MtaError) else f"{type(error).__name__}: {error}"
        self.say(f"error: {message}")
        for fault in error.faults if isinstance(error, BadInput) else ():
            self.say(f"  {clean_line(fault)}")
        if isinstance(error, MtaError) and error.hint:
            self.say(f"hint: {error.hint}")

    def _step(self, event: Step) -> None:
        now, progress = time.monotonic(), self.progress
        self._pace = self._pace or _Pace(now, event.done)
        progress.done, progress.label = event.done, clean_line(event.label)
        if event.loss is not None:
            progress.losses.append(event.loss)
            del progress.losses[:-LOSSES]
        self._pace.tokens += event.tokens
        passed, units = now - self._pace.since, event.done - self._pace.first
        if passed > 0 and self._pace.tokens:
            progress.tokens_per_second = self._pace.tokens / passed
        if passed > 0 and units > 0 and progress.total is not None:
            progress.left = max(progress.total - event.done, 0) * passed / units


@dataclass
class _Pace:
    """Since when, and from which unit on, a rate is measured: a resumed job begins in the middle."""

    since: float
    first: int
    tokens: int = 0


@dataclass(frozen=True)
class _End:
    """The job's generator has ended."""

    state: State
    error: BaseException | None = None


class JobBoard:
    """The jobs of this window, oldest first. All of it belongs to the window's thread but `_work`."""

    def __init__(self, root: Path, timeout: float) -> None:
        self.jobs: list[Job] = []
        self._root, self._timeout = root, timeout
        self._heard: queue.SimpleQueue[tuple[Job, Event | _End]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> Job | None:
        """The job at work."""
        return next((job for job in self.jobs if job.state == "running"), None)

    @property
    def busy(self) -> bool:
        """Whether a job is at work or waits for its turn."""
        return any(not job.over for job in self.jobs)

    def add(self, kind: str, title: str, make: Make) -> Job:
        """Queue a job; it begins when those before it have ended. `make` is called in its thread, with its registry."""
        job = Job(len(self.jobs) + 1, kind, clean_line(title), make)
        self.jobs.append(job)
        self._begin_next()
        return job

    def stop(self, job: Job) -> None:
        """End a job after the event at hand, so that it keeps a checkpoint; one that waits never begins."""
        job.stop_asked.set()
        if job.state == "waiting":
            job.state = "stopped"
            job.say("stopped before it began")

    def drain(self) -> list[Job]:
        """Take what the thread has said since the last time; returns the jobs that moved."""
        moved: dict[Job, None] = {}
        with suppress(queue.Empty):
            while True:
                job, event = self._heard.get_nowait()
                moved[job] = None
                if isinstance(event, _End):
                    self._ended(job, event)
                else:
                    job.take(event)
        return list(moved)

    def close(self) -> None:
        """Stop everything and wait until the job at work has kept what it can."""
        for job in self.jobs:
            if not job.over:
                self.stop(job)
        if self._thread is not None:
            self._thread.join()

    def _begin_next(self) -> None:
        waiting = next((job for job in self.jobs if job.state == "waiting"), None)
        if self.running is not None or waiting is None:
            return
        waiting.state, waiting.started = "running", time.time()
        self._thread = threading.Thread(target=self._work, args=(waiting,), name=f"job {waiting.number}")
        self._thread.start()

    def _ended(self, job: Job, end: _End) -> None:
        job.state, job.ended, job.progress.left = end.state, time.time(), None
        if end.error is not None:
            job.fail(end.error)
        elif end.state == "stopped":
            job.say("stopped; what was finished is kept, and the job goes on when it is started again")
        self._begin_next()

    def _work(self, job: Job) -> None:
        from store.registry import Registry

        try:
            with Registry.open(self._root, create=True, timeout=self._timeout) as registry:
                stopped = self._follow(job, job.make(registry))
            self._heard.put((job, _End("stopped" if stopped else "done")))
        except BaseException as error:
            self._heard.put((job, _End("failed", error)))

    def _follow(self, job: Job, events: Iterator[Event]) -> bool:
        """Put every event into the queue; whether the job was stopped before its end."""
        for event in events:
            self._heard.put((job, event))
            if job.stop_asked.is_set() and not isinstance(event, Done):
                if (close := getattr(events, "close", None)) is not None:
                    close()
                return True
        return False
