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

from mta_cli.errors import MtaError
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobResult, JobStarted
from mta_cli.job_text import RateMeter, error_lines, event_text
from mta_cli.printable import clean_line, clean_text

if TYPE_CHECKING:
    from store.registry import Registry

JobState = Literal["waiting", "running", "done", "failed", "stopped"]
MakeEvents = Callable[["Registry"], Iterator[Event]]
LOG_LINES, MAX_LOSSES = 2000, 4000  # kept of a job, the newest


@dataclass
class ProgressState:
    """How far a job is. `left`: seconds, as far as can be told."""

    done: int = 0
    total: int | None = None
    unit: str = "steps"
    label: str = ""
    losses: list[float] = field(default_factory=list)
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(eq=False)
class Job:
    """Something long that was asked for. `log` holds cleaned lines. `saved` counts what became durable."""

    number: int
    kind: str
    title: str
    make_events: MakeEvents
    state: JobState = "waiting"
    started_at: float | None = None
    ended_at: float | None = None
    progress: ProgressState = field(default_factory=ProgressState)
    log: list[str] = field(default_factory=list)
    error: BaseException | None = None
    result: Any = None
    unreported_saves: int = 0
    stop_requested: threading.Event = field(default_factory=threading.Event)
    _meter: RateMeter | None = None

    @property
    def finished(self) -> bool:
        """Whether it has come to an end, of whatever kind."""
        return self.state in ("done", "failed", "stopped")

    def apply_event(self, event: Event) -> None:
        """Let an event of the job's generator change what is shown of it."""
        if isinstance(event, JobStarted):
            self.progress = ProgressState(0, event.total, event.unit, "", self.progress.losses)
            self._meter = RateMeter(event.total, time.monotonic())
        elif isinstance(event, JobProgress):
            self._apply_step(event)
        elif isinstance(event, JobResult):
            self.result = event.result
        elif (line := event_text(event)) is not None:
            self.unreported_saves += isinstance(event, ArtifactSaved)
            self.append_log(line)

    def append_log(self, text: str) -> None:
        """Add lines to the log."""
        self.log += clean_text(text).splitlines() or [""]
        del self.log[:-LOG_LINES]

    def record_error(self, error: BaseException) -> None:
        """Say in the log what went wrong, in the command line's words."""
        self.error = error
        message, *faults = error_lines(error)
        for line in (f"error: {message}", *faults):
            self.append_log(line)
        if isinstance(error, MtaError) and error.hint:
            self.append_log(f"hint: {error.hint}")

    def _apply_step(self, event: JobProgress) -> None:
        now, progress = time.monotonic(), self.progress
        meter = self._meter = self._meter or RateMeter(progress.total, now)
        meter.add_step(event, now)
        progress.done, progress.label = event.done, clean_line(event.label)
        if event.loss is not None:
            progress.losses.append(event.loss)
            del progress.losses[:-MAX_LOSSES]
        progress.tokens_per_second, progress.seconds_left = meter.tokens_per_second, meter.seconds_left


@dataclass(frozen=True)
class _JobEnded:
    """The job's generator has ended."""

    state: JobState
    error: BaseException | None = None


class JobQueue:
    """The jobs of this window, oldest first. All of it belongs to the window's thread but `_work`."""

    def __init__(self, root: Path, timeout: float) -> None:
        self.jobs: list[Job] = []
        self._root, self._timeout = root, timeout
        self._events: queue.SimpleQueue[tuple[Job, Event | _JobEnded]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def running_job(self) -> Job | None:
        """The job at work."""
        return next((job for job in self.jobs if job.state == "running"), None)

    @property
    def has_unfinished_jobs(self) -> bool:
        """Whether a job is at work or waits for its turn."""
        return any(not job.finished for job in self.jobs)

    def add_job(self, kind: str, title: str, make: MakeEvents) -> Job:
        """Queue a job; it begins when those before it have ended. `make` is called in its thread, with its registry."""
        job = Job(len(self.jobs) + 1, kind, clean_line(title), make)
        self.jobs.append(job)
        self._begin_next()
        return job

    def stop_job(self, job: Job) -> None:
        """End a job after the event at hand, so that it keeps a checkpoint; one that waits never begins."""
        job.stop_requested.set()
        if job.state == "waiting":
            job.state = "stopped"
            job.append_log("stopped before it began")

    def drain_events(self) -> list[Job]:
        """Take what the thread has said since the last time; returns the jobs that moved."""
        moved: dict[Job, None] = {}
        with suppress(queue.Empty):
            while True:
                job, event = self._events.get_nowait()
                moved[job] = None
                if isinstance(event, _JobEnded):
                    self._finish_job(job, event)
                else:
                    job.apply_event(event)
        return list(moved)

    def close(self) -> None:
        """Stop everything and wait until the job at work has kept what it can."""
        for job in self.jobs:
            if not job.finished:
                self.stop_job(job)
        if self._thread is not None:
            self._thread.join()

    def _begin_next(self) -> None:
        waiting = next((job for job in self.jobs if job.state == "waiting"), None)
        if self.running_job is not None or waiting is None:
            return
        waiting.state, waiting.started_at = "running", time.time()
        self._thread = threading.Thread(target=self._run_job, args=(waiting,), name=f"job {waiting.number}")
        self._thread.start()

    def _finish_job(self, job: Job, end: _JobEnded) -> None:
        job.state, job.ended_at, job.progress.seconds_left = end.state, time.time(), None
        if end.error is not None:
            job.record_error(end.error)
        elif end.state == "stopped":
            job.append_log("stopped; what was finished is kept, and the job goes on when it is started again")
        self._begin_next()

    def _run_job(self, job: Job) -> None:
        from store.registry import Registry

        try:
            with Registry.open(self._root, create=True, timeout=self._timeout) as registry:
                stopped = self._forward_events(job, job.make_events(registry))
            self._events.put((job, _JobEnded("stopped" if stopped else "done")))
        except BaseException as error:
            self._events.put((job, _JobEnded("failed", error)))

    def _forward_events(self, job: Job, events: Iterator[Event]) -> bool:
        """Put every event into the queue; whether the job was stopped before its end."""
        for event in events:
            self._events.put((job, event))
            if job.stop_requested.is_set() and not isinstance(event, JobResult):
                if (close := getattr(events, "close", None)) is not None:
                    close()
                return True
        return False
