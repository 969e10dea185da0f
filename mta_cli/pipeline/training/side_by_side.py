"""Pieces of work at once, each in a thread of its own, and one queue that brings what they report.

Whoever reads the queue does all that must not be shared, such as writing. Knows neither devices nor what the work is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

R = TypeVar("R")

QUEUE_TIMEOUT_SECONDS = 1.0  # seconds without a word after which threads are looked at


@dataclass(frozen=True)
class _WorkerDone:
    """A thread's last word; `error` is what broke it off."""

    error: BaseException | None


class WorkerPool(Generic[R]):
    """Runs pieces of work, which are iterators of reports under a number each.

    At most `most` reports wait to be read: no work runs far ahead of its reader. `failed` has the numbers of work that
    raised. The threads are daemons, so that a second Ctrl-C ends the program whatever they do.
    """

    def __init__(self, most: int) -> None:
        self.failed_workers: set[int] = set()
        self._queue: Queue[tuple[int, R | _WorkerDone]] = Queue(most)
        self._stopping = Event()
        self._threads: dict[int, Thread] = {}

    def start_worker(self, number: int, work: Iterator[R]) -> None:
        """Begin a piece of work; its iterator runs in the new thread only."""
        thread = Thread(target=self._run, args=(number, work), name=f"work {number}", daemon=True)
        self._threads[number] = thread
        thread.start()

    def worker_reports(self) -> Iterator[tuple[int, R]]:
        """What is reported, and by which work, until all of it has ended. Raises what a piece of work raises."""
        while self._threads:
            number, report = self._queue.get()
            if not isinstance(report, _WorkerDone):
                yield number, report
                continue
            self._threads.pop(number).join()
            if report.error is not None:
                raise report.error

    def stop_workers(self) -> list[tuple[int, R]]:
        """Let all work come to its next report and end there; returns what was reported meanwhile. No thread is left.

        Work that raises meanwhile is in `failed`; nothing is raised here.
        """
        self._stopping.set()
        late: list[tuple[int, R]] = []
        while self._threads:
            try:
                number, report = self._queue.get(timeout=QUEUE_TIMEOUT_SECONDS)
            except Empty:  # a last word is lost where Ctrl-C came between taking it and acting on it
                self._threads = {number: thread for number, thread in self._threads.items() if thread.is_alive()}
                continue
            if isinstance(report, _WorkerDone):
                self._threads.pop(number).join()
            else:
                late.append((number, report))
        return late

    def _run(self, number: int, work: Iterator[R]) -> None:
        error: BaseException | None = None
        try:
            for report in work:
                self._queue.put((number, report))
                if self._stopping.is_set():
                    break
        except BaseException as caught:
            error = caught
            self.failed_workers.add(number)
        self._queue.put((number, _WorkerDone(error)))
