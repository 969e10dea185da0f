"""The window's job queue: runs jobs one at a time in a thread worker. Uses no widgets.

A job's events are applied in batches and the screen is updated at most eight times a second, to limit repaints.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from textual.message import Message
from textual.worker import get_current_worker

from mta_cli.errors import MtaError, words_to_text
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobResult, JobStarted
from mta_cli.text.formatting import RateMeter, error_lines, event_text
from mta_cli.text.printable import clean_line, clean_text
from mta_cli.tui.workers.event_buffer import EventBuffer

if TYPE_CHECKING:
    from textual.app import App

    from store.registry import Registry

JobState = Literal["waiting", "running", "done", "failed", "stopped"]
MakeEvents = Callable[["Registry"], Iterator[Event]]
OnEnd = Callable[["Job"], None]
LOG_LINES, MAX_LOSSES = 2000, 4000  # the newest log lines and losses of a job that are kept
UPDATE_SECONDS = 1 / 8  # between two updates of the screen


@dataclass
class ProgressState:
    """The progress of a job. `seconds_left` is None if unknown."""

    done: int = 0
    total: int | None = None
    unit: str = "steps"
    label: str = ""
    losses: list[float] = field(default_factory=list)
    tokens_per_second: float | None = None
    seconds_left: float | None = None


@dataclass(eq=False)
class Job:
    """A job of this window, with its state, progress and log.

    `log` contains the newest of all `logged_lines` lines, cleaned. `unreported_saves` counts saved artifacts since the
    last update. `on_end` is called in the window's thread when the job has ended. `run_ids` are the runs that it
    recorded so far.
    """

    number: int
    kind: str
    title: str
    make_events: MakeEvents
    on_end: OnEnd | None = None
    state: JobState = "waiting"
    started_at: float | None = None
    ended_at: float | None = None
    progress: ProgressState = field(default_factory=ProgressState)
    log: list[str] = field(default_factory=list)
    logged_lines: int = 0
    error: BaseException | None = None
    result: Any = None
    unreported_saves: int = 0
    run_ids: Sequence[int] = ()
    stop_requested: threading.Event = field(default_factory=threading.Event)
    _meter: RateMeter | None = None

    @property
    def finished(self) -> bool:
        """Whether the job is done, failed or stopped."""
        return self.state in ("done", "failed", "stopped")

    @property
    def can_be_resumed(self) -> bool:
        """Whether the job can be resumed after a stop."""
        from mta_cli.pipeline.maintenance.resume import RESUMABLE_KINDS

        return self.kind in RESUMABLE_KINDS

    @property
    def stop_note(self) -> str:
        """What stopping the job does, as a sentence for the question that confirms it."""
        if self.state == "waiting":
            return "It has not begun."
        kept = " What is finished is kept, and it can be resumed later." if self.can_be_resumed else ""
        return f"It stops after the current step.{kept}"

    def apply_event(self, event: Event) -> None:
        """Update progress, log and result from an event of the job."""
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
        lines = clean_text(text).splitlines() or [""]
        self.log += lines
        self.logged_lines += len(lines)
        del self.log[:-LOG_LINES]

    def finish(self, state: JobState, error: BaseException | None = None) -> None:
        """Record the end of the job; an error is logged as on the command line."""
        self.state, self.ended_at, self.progress.seconds_left, self.error = state, time.time(), None, error
        if state == "done" and self.progress.total is not None:  # a resumed job does not repeat earlier steps
            self.progress.done = self.progress.total
        if error is not None:
            self._log_error(error)
        elif state == "stopped":
            kept = "; what is finished is kept, and the same job started again continues from there"
            self.append_log(f"stopped{kept if self.can_be_resumed else ''}")

    def _log_error(self, error: BaseException) -> None:
        message, *faults = error_lines(error)
        for line in (f"error: {message}", *faults):
            self.append_log(line)
        if isinstance(error, MtaError) and error.hint:
            self.append_log(f"hint: {words_to_text(error.hint)}")

    def _apply_step(self, event: JobProgress) -> None:
        now, progress = time.monotonic(), self.progress
        meter = self._meter = self._meter or RateMeter(progress.total, now)
        meter.add_step(event, now)
        progress.done, progress.label = event.done, clean_line(event.label)
        if event.loss is not None:
            progress.losses.append(event.loss)
            del progress.losses[:-MAX_LOSSES]
        progress.tokens_per_second, progress.seconds_left = meter.tokens_per_second, meter.seconds_left


class JobUpdated(Message, bubble=False):
    """Sent when a job's state, progress or log changed; the app passes it to the current screen."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class JobQueue:
    """The jobs of this window, oldest first. Only `_run_job` and `_forward_events` run in a job's thread."""

    GROUP = "jobs"

    def __init__(self, app: App[Any], root: Path, timeout: float) -> None:
        self.jobs: list[Job] = []
        self._app, self._root, self._timeout = app, root, timeout

    @property
    def running_job(self) -> Job | None:
        """The running job."""
        return next((job for job in self.jobs if job.state == "running"), None)

    @property
    def has_unfinished_jobs(self) -> bool:
        """Whether a job runs or waits."""
        return any(not job.finished for job in self.jobs)

    def add_job(self, kind: str, title: str, make_events: MakeEvents, on_end: OnEnd | None = None) -> Job:
        """Queue a job; it starts when all earlier jobs have ended.

        `make_events` is called in the job's thread, with a registry of that thread.
        """
        job = Job(len(self.jobs) + 1, kind, clean_line(title), make_events, on_end)
        self.jobs.append(job)
        self._begin_next()
        return job

    def stop_job(self, job: Job) -> None:
        """Stop a job after the current step, so that it keeps a checkpoint; a waiting job is never started."""
        job.stop_requested.set()
        if job.state == "waiting":
            job.state = "stopped"
            job.append_log("stopped before it began")

    def close(self) -> None:
        """Stop all jobs without waiting."""
        for job in self.jobs:
            if not job.finished:
                self.stop_job(job)

    def _begin_next(self) -> None:
        job = next((job for job in self.jobs if job.state == "waiting"), None)
        if self.running_job is not None or job is None:
            return
        job.state, job.started_at = "running", time.time()
        self._app.run_worker(partial(self._run_job, job), name=f"job {job.number}", group=self.GROUP, thread=True)

    def _run_job(self, job: Job) -> None:
        from store.registry import Registry

        state: JobState = "done"
        error: BaseException | None = None
        buffer = EventBuffer(self._app, partial(self._apply_events, job), UPDATE_SECONDS)
        try:
            with Registry.open(self._root, create=True, timeout=self._timeout) as registry:
                job.run_ids = registry.runs.started_ids
                state = self._forward_events(job, job.make_events(registry), buffer)
        except BaseException as raised:
            state, error = "failed", raised
        if get_current_worker().is_cancelled:  # the window is closed
            job.finish(state, error)
        else:
            self._app.call_from_thread(self._finish_job, job, state, error, buffer)

    def _forward_events(self, job: Job, events: Iterator[Event], buffer: EventBuffer) -> JobState:
        """Put every event of a job into the buffer; returns how the job ended."""
        worker = get_current_worker()
        with closing(events) as running:  # type: ignore[type-var]
            for event in running:
                buffer.put(event)
                stopped = job.stop_requested.is_set() or worker.is_cancelled
                if stopped and not isinstance(event, JobResult):
                    return "stopped"
        return "done"

    def _apply_events(self, job: Job, events: list[Event]) -> None:
        for event in events:
            job.apply_event(event)
        self._app.post_message(JobUpdated(job))

    def _finish_job(self, job: Job, state: JobState, error: BaseException | None, buffer: EventBuffer) -> None:
        buffer.flush()
        job.finish(state, error)
        self._app.post_message(JobUpdated(job))
        self._begin_next()
        if job.on_end is not None:
            job.on_end(job)
