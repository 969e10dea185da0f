"""Work in threads: what comes through the queue, errors, stopping, and that no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from mta_cli.pipeline.training import side_by_side
from mta_cli.pipeline.training.side_by_side import WorkerPool


def counting(upto: int) -> Iterator[int]:
    yield from range(upto)


def forever(seen: list[int]) -> Iterator[int]:
    for number in iter(lambda: len(seen), None):
        seen.append(number)
        yield number


def breaking(after: int) -> Iterator[int]:
    yield from range(after)
    raise KeyError("broken")


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("work ")]


def test_everything_is_reported_in_each_works_own_order() -> None:
    crew: WorkerPool[int] = WorkerPool(2)
    for number in (1, 2):
        crew.start_worker(number, counting(10 * number))
    found = list(crew.worker_reports())
    assert [report for number, report in found if number == 1] == list(range(10))
    assert [report for number, report in found if number == 2] == list(range(20))
    assert not crew.failed_workers and not workers()


def test_more_work_may_start_while_reports_are_read() -> None:
    crew: WorkerPool[int] = WorkerPool(1)
    crew.start_worker(0, counting(1))
    found = []
    for number, _ in crew.worker_reports():
        found.append(number)
        if number < 4:
            crew.start_worker(number + 1, counting(1))
    assert found == [0, 1, 2, 3, 4] and not workers()


def test_an_error_is_raised_where_reports_are_read_and_the_rest_can_be_stopped() -> None:
    crew: WorkerPool[int] = WorkerPool(2)
    seen: list[int] = []
    crew.start_worker(0, forever(seen))
    crew.start_worker(1, breaking(3))
    with pytest.raises(KeyError, match="broken"):
        list(crew.worker_reports())
    late = crew.stop_workers()
    assert crew.failed_workers == {1} and not workers()
    assert seen == list(range(len(seen))) and all(number == 0 for number, _ in late)


def test_stopping_loses_no_report_and_waits_for_each_to_come() -> None:
    crew: WorkerPool[int] = WorkerPool(2)
    seen: list[int] = []
    crew.start_worker(0, forever(seen))
    read: list[int] = []
    for _, report in crew.worker_reports():
        read.append(report)
        if len(read) == 5:
            break
    read += [report for _, report in crew.stop_workers()]
    assert read == seen and not workers()


def test_work_does_not_run_far_ahead_of_its_reader() -> None:
    crew: WorkerPool[int] = WorkerPool(2)
    seen: list[int] = []
    crew.start_worker(0, forever(seen))
    reports = crew.worker_reports()
    for _ in range(5):
        next(reports)
        assert len(seen) <= 5 + 2 + 1  # read, waiting, and one that wants to wait
    crew.stop_workers()


def test_errors_while_stopping_are_counted_and_not_raised() -> None:
    crew: WorkerPool[int] = WorkerPool(1)
    gate = threading.Event()

    def late() -> Iterator[int]:
        yield 0
        gate.wait(30)
        raise ValueError("late")

    crew.start_worker(0, late())
    next(crew.worker_reports())
    gate.set()
    assert crew.stop_workers() == [] and crew.failed_workers <= {0} and not workers()


def test_a_last_word_that_was_lost_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "QUEUE_TIMEOUT_SECONDS", 0.01)
    crew: WorkerPool[int] = WorkerPool(3)
    crew.start_worker(0, counting(1))
    while crew._queue.qsize() < 2:
        pass
    crew._queue.get(), crew._queue.get()  # as if Ctrl-C had come right after
    assert crew.stop_workers() == []
