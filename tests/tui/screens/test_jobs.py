"""The screen of jobs: starting by form, watching, stopping, and going on with what was interrupted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList, RichLog

from mta_cli.configuration.settings import Settings
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobResult, JobStarted, Note
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.maintenance.resume import list_unfinished_jobs
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.basic import ChoiceDialog, ConfirmDialog, ErrorDialog
from mta_cli.tui.dialogs.form import FormDialog
from mta_cli.tui.screens.jobs import JobsScreen
from mta_cli.tui.workers.store_thread import StoreThread
from store.registry import Registry
from tests.pipeline.maintenance.test_resume import stop_after
from tests.pipeline.town import TASK, bank_request
from tests.tui.driving import hold_jobs, open_app, run, screen_text, settled, until

PATIENCE = 30.0  # seconds
HOSTILE = "a\x1b]0;owned\x07[red]b[/red]\u202e"


@pytest.fixture(autouse=True)
def jobs_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window opens in this screen, and the task by its name is the quick one of the town."""
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "jobs")
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)


class Slow:
    """A job that takes a step when it is released, and continues alone if a test has failed."""

    def __init__(self, steps: int = 100) -> None:
        self.steps, self.closed = steps, False
        self._go = threading.Semaphore(0)

    def let(self, count: int = 1) -> None:
        self._go.release(count)

    def make(self, reg: Registry) -> Iterator[Event]:
        yield JobStarted("slow", self.steps)
        try:
            for done in range(1, self.steps + 1):
                self._go.acquire(timeout=PATIENCE)
                yield JobProgress("anchor 1", done, 5.0 - done / 50, 100)
            yield ArtifactSaved("bank", "mine")
            yield JobResult({})
        finally:
            self.closed = True


def interrupted(store: Path) -> None:
    with Registry.open(store) as reg:
        stop_after(build_bank(reg, bank_request(name="mine", task_rank=1)), 3)  # a task adapter of its own


def log_of(app: MtaApp) -> str:
    return "\n".join(strip.text.rstrip() for strip in app.screen.query_one("#log", RichLog).lines)


def rows(app: MtaApp) -> list[str]:
    found = app.screen.query_one("#list", OptionList)
    return [str(found.get_option_at_index(i).prompt).split("\n")[0] for i in range(found.option_count)]


async def dialog(app: MtaApp, pilot: Pilot[None], kind: type) -> Any:
    await until(pilot, lambda: isinstance(app.screen, kind))
    return app.screen


async def back(app: MtaApp, pilot: Pilot[None]) -> None:
    await until(pilot, lambda: isinstance(app.screen, JobsScreen))
    await settled(app, pilot)


async def test_an_empty_screen_says_what_to_press(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        shown = screen_text(app)
        assert "No job is running" in shown and "b  bank build" in shown and "i  data import" in shown
        assert "Stop" not in shown and "Resume" not in shown
        await pilot.press("n")
        await dialog(app, pilot, ChoiceDialog)
        await pilot.press("escape")
        await back(app, pilot)
        assert app.job_queue.jobs == []
        await pilot.press("n")
        await dialog(app, pilot, ChoiceDialog)
        await pilot.press("down", "enter")
        await dialog(app, pilot, FormDialog)
        assert "user adapt" in screen_text(app)


def test_no_lack_of_jobs_is_told_before_they_are_known(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the list is hidden for a moment, and the focus is gone from it when it is back."""
    interrupted(demo_store)
    go_on, run_now = threading.Event(), StoreThread.run

    async def run_late(store: StoreThread, action: Any) -> Any:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return await run_now(store, action)

    async def go() -> None:
        app = MtaApp(demo_store, Settings.load(demo_store))
        async with app.run_test(size=(80, 24)) as pilot:
            for _ in range(3):
                await pilot.pause(0.05)
            assert "No job is running" not in screen_text(app)
            assert app.focused is app.screen.query_one("#list")
            go_on.set()
            await settled(app, pilot)
            assert len(rows(app)) == 1 and app.focused is app.screen.query_one("#list")

    monkeypatch.setattr(StoreThread, "run", run_late)
    run(go())


async def test_a_user_is_adapted_from_the_form(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        app.select_user("kim")
        await pilot.press("a")
        form = await dialog(app, pilot, FormDialog)
        assert form.form_values["users"] == "kim" and form.form_values["task"] == "lamp-2"
        await pilot.press("tab", "tab", "4", "ctrl+s")
        await until(pilot, lambda: form.plan_shown)
        assert "lamp-2 v1" in screen_text(app)
        await pilot.press("enter")
        await until(pilot, lambda: bool(app.job_queue.jobs) and app.job_queue.jobs[0].finished)
        await back(app, pilot)
        assert app.job_queue.jobs[0].state == "done" and "saved stack kim" in log_of(app)
        assert rows(app) == ["✓ user adapt · kim · shots 4"] and "27/27 steps" in screen_text(app)
        assert [p.name for p in await app.store_thread.run(lambda reg: _adapted(reg))] == ["ida", "kim"]


def _adapted(reg: Registry) -> list[Any]:
    return [each for each in reg.user_table.summaries() if each.status == "adapted"]


async def test_what_the_plan_refuses_is_told_in_the_form_and_nothing_starts(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await pilot.press("a")
        form = await dialog(app, pilot, FormDialog)
        await pilot.press(*"kin", "ctrl+s")
        await until(pilot, lambda: "There is no user" in str(form.query_one("#faults").content))
        assert "Did you mean 'kim'?" in str(form.query_one("#faults").content) and not form.plan_shown
        await pilot.press("escape")
        await back(app, pilot)
        assert app.job_queue.jobs == []


async def test_a_job_is_watched_and_stopped_when_the_user_means_it(demo_store: Path) -> None:
    slow = Slow()
    async with open_app(demo_store) as (app, pilot):
        job = app.job_queue.add_job("bank build", "films", slow.make)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        slow.let(10)
        await until(pilot, lambda: "10/100 steps" in screen_text(app))
        await settled(app, pilot)
        shown = screen_text(app)
        assert "10/100 steps" in shown and "tokens/s" in shown and "ETA" in shown and "━" in shown and "Stop" in shown
        assert "loss 4.980 █" in shown and "▁ 4.800 (−3.6 %)" in shown
        await pilot.press("s")
        await dialog(app, pilot, ConfirmDialog)
        await pilot.press("n")
        await back(app, pilot)
        assert not job.stop_requested.is_set()
        await pilot.press("s")
        await dialog(app, pilot, ConfirmDialog)
        await pilot.press("y")
        slow.let()
        await until(pilot, lambda: job.finished)
        await back(app, pilot)
        assert job.state == "stopped" and slow.closed and "■ bank build · films" in screen_text(app)
        assert "started again continues from there" in " ".join(log_of(app).split()) and "Stop" not in screen_text(app)


async def test_a_job_that_waits_is_stopped_at_once(demo_store: Path) -> None:
    first, second = Slow(), Slow()
    async with open_app(demo_store) as (app, pilot):
        app.job_queue.add_job("bank build", "one", first.make)
        waiting = app.job_queue.add_job("bank build", "two", second.make)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert rows(app) == ["· bank build · two", "▶ bank build · one"]
        await pilot.press("s")
        await dialog(app, pilot, ConfirmDialog)
        await pilot.press("y")
        await back(app, pilot)
        assert waiting.state == "stopped" and "stopped before it began" in log_of(app)
        first.let(100)
        await until(pilot, lambda: app.job_queue.jobs[0].finished)
        assert not second.closed


async def test_an_interrupted_bank_is_offered_and_goes_on(demo_store: Path) -> None:
    interrupted(demo_store)

    async with open_app(demo_store) as (app, pilot):
        assert rows(app) == ["↻ bank build · mine v1"]
        assert "of 4 adapters" in screen_text(app) and "Resume" in screen_text(app)
        await pilot.press("r")
        await until(pilot, lambda: app.job_queue.jobs[0].finished)
        await settled(app, pilot)
        assert rows(app) == ["✓ bank build · mine v1"] and "goes on from step 3" in log_of(app)
        assert await app.store_thread.run(lambda reg: reg.banks.get("mine").status) == "ready"
        assert await app.store_thread.run(list_unfinished_jobs) == []


async def test_what_goes_on_is_not_offered_meanwhile(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(demo_store)
    slow = Slow()
    monkeypatch.setattr("mta_cli.pipeline.maintenance.resume.resume_job", lambda reg, *rest: slow.make(reg))

    async with open_app(demo_store) as (app, pilot):
        await pilot.press("r")
        slow.let()
        await until(pilot, lambda: app.job_queue.jobs[0].progress.done == 1)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert rows(app) == ["▶ bank build · mine v1"]
        app.job_queue.stop_job(app.job_queue.jobs[0])
        slow.let()
        await until(pilot, lambda: app.job_queue.jobs[0].finished)
        await settled(app, pilot)
        assert rows(app) == ["■ bank build · mine v1"]
        assert "r resumes it with the same options" in screen_text(app) and "Resume" in screen_text(app)


async def test_a_stopped_job_is_one_row_and_goes_on_from_there(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = hold_jobs(monkeypatch)

    async with open_app(demo_store) as (app, pilot):
        asked = bank_request(name="mine", task_rank=1)
        job = app.job_queue.add_job("bank build", "mine", lambda reg: build_bank(reg, asked))
        await until(pilot, lambda: job.progress.done > 0)
        app.job_queue.stop_job(job)
        go_on.set()
        await until(pilot, lambda: job.finished)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await settled(app, pilot)
        assert job.state == "stopped" and rows(app) == ["■ bank build · mine"]
        await pilot.press("r")
        await until(pilot, lambda: len(app.job_queue.jobs) == 2 and app.job_queue.jobs[1].finished)
        await settled(app, pilot)
        assert rows(app) == ["✓ bank build · mine v1", "■ bank build · mine"]
        await pilot.press("end")
        assert "Resume" not in screen_text(app)


async def test_jobs_of_other_processes_are_shown_while_they_run(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.tui.screens.jobs.ELSEWHERE_SECONDS", 0.1)
    code = (
        "import sys; from pathlib import Path; from store.registry import Registry\n"
        "with Registry.open(Path(sys.argv[1])) as reg, reg.hold_users('build of bank [b]far[/b]', [1, 2]):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )

    async with open_app(demo_store) as (app, pilot):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(demo_store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdin is not None and other.stdout is not None and other.stdout.readline()
            await until(pilot, lambda: rows(app) == ["↗ build of bank [b]far[/b], 2 users"])
            assert "in another process" in screen_text(app) and "Resume" not in screen_text(app)
            other.stdin.close()
        await until(pilot, lambda: rows(app) == [])
        assert "No job is running" in screen_text(app)


async def test_the_job_of_this_window_is_not_one_of_another_process(demo_store: Path) -> None:
    def holds(reg: Registry) -> Iterator[Event]:
        with reg.hold_users("here", [1]):
            yield JobStarted("here", 1)
            assert reg.jobs.running_jobs() == [("here", 1)] and reg.jobs.running_jobs(elsewhere=True) == []
            yield JobResult({})

    async with open_app(demo_store) as (app, pilot):
        job = app.job_queue.add_job("bank build", "here", holds)
        await until(pilot, lambda: job.finished)
        assert job.state == "done", job.log


async def test_an_interrupted_bank_is_given_up_only_after_a_yes(demo_store: Path) -> None:
    interrupted(demo_store)

    async with open_app(demo_store) as (app, pilot):
        for key, left in (("n", 1), ("y", 0)):
            await pilot.press("x")
            await dialog(app, pilot, ConfirmDialog)
            await pilot.press(key)
            await back(app, pilot)
            assert len(rows(app)) == left
        assert [bank.name for bank in await app.store_thread.run(lambda reg: reg.banks.all())] == ["lamp-2"]


async def test_a_bank_that_became_ready_during_the_question_stays_and_is_offered_no_more(demo_store: Path) -> None:
    interrupted(demo_store)

    async with open_app(demo_store) as (app, pilot):
        await pilot.press("x")
        await dialog(app, pilot, ConfirmDialog)
        with Registry.open(demo_store) as other:
            (bank,) = [bank for bank in other.banks.all() if bank.name == "mine"]
            other._db.execute_write("UPDATE banks SET status = 'ready' WHERE id = ?", (bank.id,))
        await pilot.press("y")
        await dialog(app, pilot, ErrorDialog)
        assert "was finished meanwhile" in screen_text(app)
        await pilot.press("escape")
        await back(app, pilot)
        assert rows(app) == []


async def test_a_job_that_fails_says_why_and_the_next_one_runs(demo_store: Path) -> None:
    def broken(reg: Registry) -> Iterator[Event]:
        yield Note("so far so good")
        raise ValueError(HOSTILE)

    async with open_app(demo_store) as (app, pilot):
        failed = app.job_queue.add_job("bank build", HOSTILE, broken)
        slow = Slow(1)
        slow.let()
        good = app.job_queue.add_job("bank build", "good", slow.make)
        await until(pilot, lambda: failed.finished and good.finished)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await settled(app, pilot)
        await pilot.press("end")
        await settled(app, pilot)
        assert failed.state == "failed" and good.state == "done"
        shown = screen_text(app)
        assert "error: ValueError" in shown and "[red]b[/red]" in shown and "so far so good" in log_of(app)
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_a_log_without_screen_is_waited_for_without_work(demo_store: Path) -> None:
    def said(reg: Registry) -> Iterator[Event]:
        yield Note("so far so good")
        yield JobResult({})

    async def go() -> None:
        async with open_app(demo_store) as (app, pilot):
            app.screen.query_one("#log").display = False
            await pilot.pause()
            job = app.job_queue.add_job("bank build", "words", said)
            await until(pilot, lambda: job.finished)
            app.screen.reload_if_current()  # type: ignore[attr-defined]
            await settled(app, pilot)
            await asyncio.wait_for(pilot.pause(), 20)
            assert not log_of(app)
            app.screen.query_one("#log").display = True
            await until(pilot, lambda: "so far so good" in log_of(app))

    run(asyncio.wait_for(go(), 60))


async def test_the_log_follows_and_is_capped(demo_store: Path) -> None:
    def talkative(reg: Registry) -> Iterator[Event]:
        for n in range(5000):
            yield Note(f"line {n}")
        yield JobResult({})

    async with open_app(demo_store) as (app, pilot):
        job = app.job_queue.add_job("bank build", "words", talkative)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        await until(pilot, lambda: job.finished)
        await settled(app, pilot)
        log = app.screen.query_one("#log", RichLog)
        assert len(log.lines) <= 2000 and log.lines[-1].text.strip() == "line 4999"
        await until(pilot, lambda: "line 4999" in screen_text(app))
        assert "line 2999" not in log_of(app)


async def test_the_first_lines_of_a_screen_that_was_empty_use_its_whole_width(demo_store: Path) -> None:
    words = "a line of some length that still fits into eighty columns of a terminal"

    def short(reg: Registry) -> Iterator[Event]:
        yield Note(words)
        yield JobResult({})

    async with open_app(demo_store) as (app, pilot):
        job = app.job_queue.add_job("bank build", "words", short)
        await until(pilot, lambda: job.finished)
        await settled(app, pilot)
        assert words in log_of(app).split("\n")


@pytest.mark.parametrize("size", [(60, 18), (80, 24), (200, 50)])
async def test_list_and_log_are_both_seen_at_every_size(demo_store: Path, size: tuple[int, int]) -> None:
    interrupted(demo_store)

    slow = Slow()
    async with open_app(demo_store, size) as (app, pilot):
        for n in range(12):
            app.job_queue.add_job("bank build", f"job {n}", slow.make)
        app.screen.reload_if_current()  # type: ignore[attr-defined]
        slow.let(3)
        await until(pilot, lambda: app.job_queue.jobs[0].progress.done == 3)
        await settled(app, pilot)
        await pilot.press("end")
        await until(pilot, lambda: "3/100 steps" in screen_text(app))
        listed, log = app.screen.query_one("#list"), app.screen.query_one("#log")
        assert listed.region.height >= 4 and log.region.height >= 3 and log.region.width >= 40
        assert listed.region.right <= log.region.x or listed.region.bottom <= log.region.y
        assert "3/100 steps" in screen_text(app)
        for job in app.job_queue.jobs:
            app.job_queue.stop_job(job)
        slow.let(100)


async def test_resizing_keeps_what_is_selected(demo_store: Path) -> None:
    interrupted(demo_store)

    slow = Slow(1)
    async with open_app(demo_store) as (app, pilot):
        app.job_queue.add_job("bank build", "films", slow.make)
        slow.let()
        await until(pilot, lambda: app.job_queue.jobs[0].finished)
        await settled(app, pilot)
        await pilot.press("end")
        await pilot.resize_terminal(200, 50)
        await settled(app, pilot)
        assert app.screen.query_one("#list", OptionList).highlighted == 1
        assert "saved bank mine" in log_of(app)
