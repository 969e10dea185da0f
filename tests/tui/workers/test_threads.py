"""Shelf, jobs and speaker: each in a thread of its own, heard in order, stopped between events, closed for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_cli.errors import BadInput
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobResult, JobStarted, Note, TextChunk, UnitFailed
from mta_cli.tui.workers.job_queue import LOG_LINES, Job, JobQueue
from mta_cli.tui.workers.model_worker import ModelWorker, WorkerContext
from mta_cli.tui.workers.store_reader import StoreReader
from store.registry import Registry
from tests.tui.driving import run


@pytest.fixture
def board(tmp_path: Path) -> Iterator[JobQueue]:
    made = JobQueue(tmp_path / "store", 1.0)
    yield made
    made.close()


@pytest.fixture
def speaker(tmp_path: Path) -> Iterator[ModelWorker]:
    made = ModelWorker(tmp_path / "store", 1.0, "tiny")
    yield made
    made.close()


def finish(board: JobQueue, job: Job) -> None:
    while not job.finished:
        board.drain_events()


def test_the_shelf_answers_in_one_thread_and_passes_on_what_goes_wrong(tmp_path: Path) -> None:
    async def drive() -> None:
        shelf = StoreReader(tmp_path / "store", 1.0)
        first = await shelf.read(lambda reg: (threading.get_ident(), reg.users.add("ida").name))
        second = await shelf.read(lambda reg: (threading.get_ident(), reg.users.names()))
        assert first[0] == second[0] != threading.get_ident() and second[1] == ["ida"]
        with pytest.raises(BadInput, match="already"):
            await shelf.read(lambda reg: reg.users.add("ida"))
        shelf.close()

    run(drive())


def everything(reg: Registry) -> Iterator[Event]:
    reg.users.add("ida")
    yield JobStarted("walk", total=4, unit="miles")
    yield JobProgress("slow\x1b[1m", 1, loss=2.0, tokens=10)
    yield JobProgress("far", 2, loss=1.0, tokens=10)
    yield Note("look\x07 out", warning=True)
    yield UnitFailed("jon", "lost his shoe")
    yield ArtifactSaved("thing", "one", "3 bytes")
    yield JobResult({"miles": 2})


def test_a_job_has_a_registry_of_its_own_and_all_it_says_is_kept_clean(board: JobQueue) -> None:
    job = board.add_job("walk", "a\nwalk", everything)
    finish(board, job)
    assert (job.state, job.title, job.result, job.unreported_saves) == ("done", "a walk", {"miles": 2}, 1)
    progress = job.progress
    assert (progress.done, progress.total, progress.unit, progress.label) == (2, 4, "miles", "far")
    assert progress.losses == [2.0, 1.0] and progress.seconds_left is None
    assert job.log == ["warning: look out", "jon failed: lost his shoe", "saved thing one (3 bytes)"]
    assert job.started_at is not None and job.ended_at is not None and job.ended_at >= job.started_at


def test_what_goes_wrong_ends_a_job_in_the_words_of_the_command_line(board: JobQueue) -> None:
    def broken(reg: Registry) -> Iterator[Event]:
        yield JobStarted("walk")
        raise BadInput("no way", hint="turn back", faults=("here", "there\x1b"))

    def unforeseen(reg: Registry) -> Iterator[Event]:
        yield JobStarted("walk")
        raise ZeroDivisionError("oh")

    first, second = board.add_job("walk", "one", broken), board.add_job("walk", "two", unforeseen)
    finish(board, second)
    assert first.state == second.state == "failed"
    assert first.log == ["error: no way", "  here", "  there", "hint: turn back"]
    assert second.log == ["error: ZeroDivisionError: oh"]


def test_jobs_run_one_at_a_time_in_the_order_they_were_asked_for(board: JobQueue) -> None:
    gate, order = threading.Event(), list[str]()

    def waits(reg: Registry) -> Iterator[Event]:
        gate.wait(10)
        order.append("first")
        yield JobResult()

    def follows(reg: Registry) -> Iterator[Event]:
        order.append("second")
        yield JobResult()

    first, second, third = (board.add_job("walk", "x", make) for make in (waits, follows, follows))
    assert [first.state, second.state, third.state] == ["running", "waiting", "waiting"] and board.running_job is first
    board.stop_job(third)
    gate.set()
    finish(board, second)
    assert order == ["first", "second"] and third.state == "stopped" and not board.has_unfinished_jobs


def test_a_stopped_job_closes_its_generator_so_that_it_can_keep_what_it_has(board: JobQueue) -> None:
    kept = list[int]()

    def endless(reg: Registry) -> Iterator[Event]:
        done = 0
        try:
            while True:
                done += 1
                yield JobProgress("on", done)
        finally:
            kept.append(done)

    job = board.add_job("walk", "x", endless)
    while job.progress.done < 50:
        board.drain_events()
    board.stop_job(job)
    finish(board, job)
    assert job.state == "stopped" and len(kept) == 1 and kept[0] >= 50 and "goes on when" in job.log[-1]


def test_a_long_log_keeps_its_newest_lines(board: JobQueue) -> None:
    def talks(reg: Registry) -> Iterator[Event]:
        for number in range(LOG_LINES + 5):
            yield Note(f"line {number}")

    job = board.add_job("walk", "x", talks)
    finish(board, job)
    assert len(job.log) == LOG_LINES and job.log[-1] == f"line {LOG_LINES + 4}"


def test_talks_are_heard_in_order_with_runs_of_tokens_as_one(speaker: ModelWorker) -> None:
    heard, ends = list[Event](), list[BaseException | None]()

    def speaks(desk: WorkerContext) -> Iterator[Event]:
        desk.reg.users.names()
        for letter in "abc":
            yield TextChunk(letter, "base")
        yield TextChunk("d", "fused")
        yield Note("end")

    def fails(desk: WorkerContext) -> Iterator[Event]:
        yield TextChunk("x")
        raise BadInput("no")

    speaker.submit_request(speaks, heard.append, ends.append)
    speaker.submit_request(fails, heard.append, ends.append)
    while speaker.has_pending_requests:
        speaker.dispatch_events()
    base = "".join(event.text for event in heard if isinstance(event, TextChunk) and event.column == "base")
    assert base == "abc" and [type(event) for event in heard[-3:]] == [TextChunk, Note, TextChunk]
    assert ends[0] is None and isinstance(ends[1], BadInput)


def test_tokens_that_wait_together_become_one(speaker: ModelWorker) -> None:
    heard, done = list[Event](), threading.Event()

    def speaks(desk: WorkerContext) -> Iterator[Event]:
        for letter in "abc":
            yield TextChunk(letter, "base")
        done.set()

    speaker.submit_request(speaks, heard.append, lambda error: None)
    done.wait(10)
    while speaker.has_pending_requests:
        speaker.dispatch_events()
    assert heard == [TextChunk("abc", "base")]


def test_a_talk_ends_where_it_is_stopped_and_the_next_one_begins(speaker: ModelWorker) -> None:
    said, closed = list[Event](), list[bool]()

    def endless(desk: WorkerContext) -> Iterator[Event]:
        try:
            while True:
                yield TextChunk("x")
        finally:
            closed.append(True)

    talk = speaker.submit_request(endless, said.append, lambda error: None)
    waiting = speaker.submit_request(endless, said.append, lambda error: None)
    waiting.request_stop()
    while not said:
        speaker.dispatch_events()
    talk.request_stop()
    while speaker.has_pending_requests:
        speaker.dispatch_events()
    assert closed == [True]
