"""Store reader, jobs and model: each in a thread of its own, told in order, stopped between events, closed for good."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot

from mta_cli.configuration.settings import Settings
from mta_cli.errors import BadInput
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobResult, JobStarted, Note, TextChunk, UnitFailed
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.requests import ChatOptions
from mta_cli.tui.workers.chat_turn import question_options_from_settings
from mta_cli.tui.workers.job_queue import LOG_LINES, Job, JobQueue, JobUpdated, MakeEvents
from mta_cli.tui.workers.model_worker import ModelWorker, WorkerContext
from mta_cli.tui.workers.store_thread import StoreThread
from store.registry import Registry
from tests.tui.driving import run, until


class Host(App[None]):
    """An app with nothing but a queue of jobs and a model, which counts the updates of jobs."""

    def __init__(self, store: Path) -> None:
        super().__init__()
        self.job_queue, self.model_worker = JobQueue(self, store, 1.0), ModelWorker(self, store, 1.0, "tiny")
        self.updated: list[Job] = []

    def on_job_updated(self, message: JobUpdated) -> None:
        self.updated.append(message.job)

    def on_unmount(self) -> None:
        self.job_queue.close()
        self.model_worker.close()


@asynccontextmanager
async def host(tmp_path: Path) -> AsyncIterator[tuple[Host, Pilot[None]]]:
    app = Host(tmp_path / "store")
    async with app.run_test() as pilot:
        yield app, pilot


def done(tmp_path: Path, *makes: MakeEvents) -> tuple[list[Job], int]:
    """Jobs that have ended, and how many updates there were."""

    async def drive() -> tuple[list[Job], int]:
        async with host(tmp_path) as (app, pilot):
            jobs = [app.job_queue.add_job("walk", "a\nwalk", make) for make in makes]
            await until(pilot, lambda: not app.job_queue.has_unfinished_jobs)
            return jobs, len(app.updated)

    return run(drive())


async def test_the_store_is_read_in_one_thread_and_errors_are_raised(tmp_path: Path) -> None:
    store = StoreThread(tmp_path / "store", 1.0)
    first = await store.run(lambda reg: (threading.get_ident(), reg.users.add("ida").name))
    second = await store.run(lambda reg: (threading.get_ident(), reg.users.names()))
    assert first[0] == second[0] != threading.get_ident() and second[1] == ["ida"]
    with pytest.raises(BadInput, match="already"):
        await store.run(lambda reg: reg.users.add("ida"))
    await store.close()


def everything(reg: Registry) -> Iterator[Event]:
    reg.users.add("ida")
    yield JobStarted("walk", total=4, unit="miles")
    yield JobProgress("slow\x1b[1m", 1, loss=2.0, tokens=10)
    yield JobProgress("far", 2, loss=1.0, tokens=10)
    yield Note("look\x07 out", warning=True)
    yield UnitFailed("jon", "lost his shoe")
    yield ArtifactSaved("thing", "one", "3 bytes")
    yield JobResult({"miles": 2})


def test_a_job_has_a_registry_of_its_own_and_all_it_says_is_kept_clean(tmp_path: Path) -> None:
    (job,), _ = done(tmp_path, everything)
    assert (job.state, job.title, job.result, job.unreported_saves) == ("done", "a walk", {"miles": 2}, 1)
    progress = job.progress
    assert (progress.done, progress.total, progress.unit, progress.label) == (4, 4, "miles", "far"), (
        "a job that is done has a full bar"
    )
    assert progress.losses == [2.0, 1.0] and progress.seconds_left is None
    assert job.log == ["warning: look out", "jon failed: lost his shoe", "saved thing one (3 bytes)"]
    assert job.started_at is not None and job.ended_at is not None and job.ended_at >= job.started_at


def test_what_goes_wrong_ends_a_job_in_the_words_of_the_command_line(tmp_path: Path) -> None:
    def broken(reg: Registry) -> Iterator[Event]:
        yield JobStarted("walk")
        raise BadInput("no way", hint="turn back", faults=("here", "there\x1b"))

    def unforeseen(reg: Registry) -> Iterator[Event]:
        yield JobStarted("walk")
        raise ZeroDivisionError("oh")

    (first, second), _ = done(tmp_path, broken, unforeseen)
    assert first.state == second.state == "failed"
    assert first.log == ["error: no way", "  here", "  there", "hint: turn back"]
    assert second.log == ["error: ZeroDivisionError: oh"]


async def test_jobs_run_one_at_a_time_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    gate, order = threading.Event(), list[str]()

    def waits(reg: Registry) -> Iterator[Event]:
        gate.wait(10)
        order.append("first")
        yield JobResult()

    def follows(reg: Registry) -> Iterator[Event]:
        order.append("second")
        yield JobResult()

    async with host(tmp_path) as (app, pilot):
        jobs = app.job_queue
        first, second, third = (jobs.add_job("walk", "x", make) for make in (waits, follows, follows))
        assert [first.state, second.state, third.state] == ["running", "waiting", "waiting"]
        assert jobs.running_job is first
        jobs.stop_job(third)
        gate.set()
        await until(pilot, lambda: not jobs.has_unfinished_jobs)
        assert order == ["first", "second"] and third.state == "stopped"


async def test_a_stopped_job_closes_its_generator_so_that_it_can_keep_what_it_has(tmp_path: Path) -> None:
    kept = list[int]()

    def endless(reg: Registry) -> Iterator[Event]:
        done = 0
        try:
            while True:
                done += 1
                yield JobProgress("on", done)
        finally:
            kept.append(done)

    async with host(tmp_path) as (app, pilot):
        job = app.job_queue.add_job("bank build", "x", endless)
        await until(pilot, lambda: job.progress.done >= 50)
        app.job_queue.stop_job(job)
        await until(pilot, lambda: job.finished)
        assert job.state == "stopped" and len(kept) == 1 and kept[0] >= 50 and "continues from there" in job.log[-1]


def test_a_window_that_ends_by_itself_stops_the_job_and_the_answer(tmp_path: Path) -> None:
    closed = list[str]()

    def endless(name: str) -> Iterator[Event]:
        try:
            while True:
                yield JobProgress("on", 1)
        finally:
            closed.append(name)

    async def drive() -> Job:
        async with host(tmp_path) as (app, pilot):
            job = app.job_queue.add_job("walk", "x", lambda reg: endless("job"))
            app.model_worker.submit_request(lambda context: endless("model"), lambda event: None, lambda error: None)
            await until(pilot, lambda: job.progress.done == 1)
        return job

    job = run(drive())  # the loop ends when its threads have
    assert job.state == "stopped" and sorted(closed) == ["job", "model"]


def test_a_long_log_keeps_its_newest_lines_and_updates_are_few(tmp_path: Path) -> None:
    def talks(reg: Registry) -> Iterator[Event]:
        for number in range(LOG_LINES + 5):
            yield Note(f"line {number}")

    (job,), updates = done(tmp_path, talks)
    assert len(job.log) == LOG_LINES and job.log[-1] == f"line {LOG_LINES + 4}"
    assert 1 <= updates < LOG_LINES / 10


def test_requests_are_answered_in_order_and_their_errors_are_passed_on(tmp_path: Path) -> None:
    told, ends = list[Event](), list[BaseException | None]()

    def answers(context: WorkerContext) -> Iterator[Event]:
        context.reg.users.names()
        for letter in "abc":
            yield TextChunk(letter, "base")
        yield TextChunk("d", "fused")
        yield Note("end")

    def fails(context: WorkerContext) -> Iterator[Event]:
        yield TextChunk("x")
        raise BadInput("no")

    async def drive() -> None:
        async with host(tmp_path) as (app, pilot):
            app.model_worker.submit_request(answers, told.append, ends.append)
            app.model_worker.submit_request(fails, told.append, ends.append)
            await until(pilot, lambda: not app.model_worker.has_pending_requests)

    run(drive())
    assert [event.text for event in told if isinstance(event, (TextChunk, Note))] == [*"abcd", "end", "x"]
    assert ends[0] is None and isinstance(ends[1], BadInput)


def test_columns_are_expected_of_the_base_that_will_answer(demo_store: Path) -> None:
    options = question_options_from_settings(Settings.load(demo_store), "lamp-2")
    with Registry.open(demo_store) as reg:
        context = WorkerContext(reg, "a base that is not here", chosen=False)
        assert context.comparison_column_keys(reg.users.get("ida"), options, []) == [
            "base",
            "common",
            "fused",
            "adapted",
        ]


def test_a_base_is_loaded_again_where_the_banks_are_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loaded:
        def __init__(self, options: ChatOptions) -> None:
            self.options = options

        def set_user_and_options(self, user: object, options: object) -> None:
            pass

    monkeypatch.setattr(ChatModel, "load_for_user", lambda reg, entry, user, options: Loaded(options))
    monkeypatch.setattr(
        "mta_cli.pipeline.models.installed.resolve_model", lambda name, kind: ModelEntry(name, kind, tmp_path, name)
    )
    monkeypatch.setattr("mta_cli.pipeline.bases_in_use.choose_base", lambda reg, default: chosen[-1])
    chosen, options = ["a"], question_options_from_settings(Settings.load(None), "free")
    with Registry.open(tmp_path / "store", create=True) as reg:
        context = WorkerContext(reg, "a", chosen=False)
        first = context.chat_model_for(None, options)
        assert context.is_current(first) and context.chat_model_for(None, options) is first
        chosen.append("b")
        assert not context.is_current(first) and context.chat_model_for(None, options) is not first


def test_all_requests_are_answered_in_one_thread(tmp_path: Path) -> None:
    threads = set[int]()

    def answers(context: WorkerContext) -> Iterator[Event]:
        threads.add(threading.get_ident())
        yield Note("end")

    async def drive() -> None:
        async with host(tmp_path) as (app, pilot):
            for _ in range(5):
                app.model_worker.submit_request(answers, lambda event: None, lambda error: None)
                await until(pilot, lambda: not app.model_worker.has_pending_requests)

    run(drive())
    assert len(threads) == 1 and threading.get_ident() not in threads


async def test_a_request_ends_where_it_is_stopped_and_the_next_one_begins(tmp_path: Path) -> None:
    told, closed = list[Event](), list[bool]()

    def endless(context: WorkerContext) -> Iterator[Event]:
        try:
            while True:
                yield TextChunk("x")
        finally:
            closed.append(True)

    async with host(tmp_path) as (app, pilot):
        request = app.model_worker.submit_request(endless, told.append, lambda error: None)
        waiting = app.model_worker.submit_request(endless, told.append, lambda error: None)
        waiting.stop.set()
        await until(pilot, lambda: bool(told))
        request.stop.set()
        await until(pilot, lambda: not app.model_worker.has_pending_requests)
        assert closed == [True]
