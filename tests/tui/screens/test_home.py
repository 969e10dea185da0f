"""Home: what it shows in each state of a store, where its entries lead, and a file of one's own up to its verdict."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from textual.pilot import Pilot

from mta_cli.configuration.settings import Settings
from mta_cli.events import Event, JobProgress, JobStarted
from mta_cli.pipeline.evaluation.ladder_text import short_verdict
from mta_cli.pipeline.overview import UserGain
from mta_cli.pipeline.quick import run as quick
from mta_cli.pipeline.runs import record_request
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.form import FormDialog
from mta_cli.tui.widgets.entry_list import EntryList
from mta_cli.tui.widgets.home_rows import gain_line, window_job_line
from mta_cli.tui.workers.job_queue import Job
from store.registry import Registry
from tests.pipeline import town
from tests.tui.driving import PATIENCE, hold_jobs, open_app, run, screen_text, settled, until

BOOKS = Path(__file__).parents[2] / "pipeline/quick/books.csv"
SIZES = [(80, 24), (120, 40), (200, 50)]


def lines(app: MtaApp, *words: str) -> list[str]:
    """The rows of the screen that hold all these words."""
    return [row for row in screen_text(app).splitlines() if all(word in row for word in words)]


async def form_of(app: MtaApp, pilot: Pilot[None]) -> FormDialog:
    """The form that opens."""
    await until(pilot, lambda: isinstance(app.screen, FormDialog))
    assert isinstance(app.screen, FormDialog)
    return app.screen


@pytest.fixture
def used_store(demo_store: Path) -> Path:
    """Jobs, chats and measured users."""
    with Registry.open(demo_store) as reg:
        for n in range(30):
            chat = reg.chats.start_chat(reg.users.get("ida").id, f"conversation {n} \x1b[31m[b]red")
            reg.chats.add_message(chat.id, "user", "hello", {})
        bank = reg.banks.all()[0]
        for _ in range(30):
            with record_request(reg, "bank refresh", {}, bank_id=bank.id):
                pass
    return demo_store


async def test_an_empty_store_offers_three_beginnings(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        assert app.current_mode == "home"
        text = screen_text(app)
        assert "There are no users yet" in text and "f Your file" in text and "m Demo" in text
        for title in ("A file of your own", "Try the demo", "Import histories"):
            assert lines(app, title), title
        for place, kind in enumerate(("quick", "demo", "data import")):
            await pilot.press(*["down"] * place, "enter")
            assert (await form_of(app, pilot)).form.title == kind
            await pilot.press("escape")
            await settled(app, pilot)
            await pilot.press(*["up"] * place)


def test_users_without_a_bank_are_led_to_its_form_and_a_bank_to_adaptation(empty_store: Path) -> None:
    with Registry.open(empty_store, create=True) as reg:
        town.people(reg)

    async def drive(title: str, kind: str) -> None:
        async with open_app(empty_store) as (app, pilot):
            assert lines(app, title) and "m Demo" not in screen_text(app)
            await pilot.press("enter")
            form = await form_of(app, pilot)
            assert form.form.title == kind and form.form_values["task"] == "lamp-2"

    run(drive("Build a bank", "bank build"))
    with Registry.open(empty_store) as reg:
        town.built(reg)
    run(drive("Adapt users", "user adapt"))


@pytest.mark.parametrize("size", SIZES)
async def test_all_of_a_full_store_fits_without_scrolling(used_store: Path, size: tuple[int, int]) -> None:
    async with open_app(used_store, size) as (app, _):
        for each in app.screen.query(EntryList):
            assert not each.display or (each.max_scroll_y == 0 and each.option_count), each.id
        text = screen_text(app)
        assert "12 users · 1 bank · 2 users with a model" in text and "\x1b" not in text
        assert lines(app, "conversation 29", "[b]red", "just now")
        assert lines(app, "bank refresh", "lamp-2 v1")
        assert lines(app, "Helped most", "held-out loss, bank lamp-2 v1") and lines(app, "ida", "→")
        assert all(len(row) <= size[0] for row in text.splitlines())


async def test_entries_lead_to_their_places_and_select_their_users(used_store: Path) -> None:
    async with open_app(used_store) as (app, pilot):
        for keys, screen, user in (
            (("enter",), "chat", "ida"),
            (("down", "enter"), "compare", "ida"),
            (("down", "down", "down", "enter"), "bank", None),
        ):
            app.select_user(None)
            app.show_screen("home")
            await settled(app, pilot)
            app.screen.query_one("#next", EntryList).highlighted = 0
            app.screen.query_one("#next").focus()
            await pilot.press(*keys)
            await settled(app, pilot)
            assert (app.current_mode, app.selected_user) == (screen, user or app.selected_user)
        app.show_screen("home")
        await settled(app, pilot)
        app.screen.query_one("#most").focus()
        await pilot.press("enter")
        await settled(app, pilot)
        assert (app.current_mode, app.selected_user) == ("users", "ida")
        app.show_screen("home")
        await settled(app, pilot)
        app.screen.query_one("#chats").focus()
        await pilot.press("enter")
        await settled(app, pilot)
        assert (app.current_mode, app.selected_user) == ("chat", "ida")
        assert "hello" in screen_text(app), "the very conversation is open"


async def test_the_arrow_keys_go_round_all_lists(used_store: Path) -> None:
    async with open_app(used_store) as (app, pilot):
        seen = [app.focused.id] if app.focused is not None else []
        await pilot.press("up")
        assert app.focused is not None and app.focused.id == "most"
        await pilot.press("down")
        assert app.focused.id == "next"
        for _ in range(40):
            await pilot.press("down")
            if app.focused.id != seen[-1]:
                seen.append(app.focused.id)
            if len(seen) > 1 and seen[-1] == "next":
                break
        assert seen == ["next", "jobs", "chats", "most", "next"]


async def test_a_job_of_the_window_is_shown_while_it_runs_and_once_when_it_ended(used_store: Path) -> None:
    gate = threading.Event()

    def work(reg: Registry) -> Iterator[Event]:
        with record_request(reg, "bank refresh", {}, bank_id=reg.banks.all()[0].id):
            yield JobStarted("bank refresh", total=4, unit="steps")
            yield JobProgress("far", 1)
            gate.wait(PATIENCE)

    async with open_app(used_store) as (app, pilot):
        shown = app.screen.query_one("#jobs", EntryList)
        job = app.job_queue.add_job("bank refresh", "mine", work)
        await until(pilot, lambda: bool(lines(app, "▶ bank refresh mine", "1/4 steps")))
        gate.set()
        await until(pilot, lambda: job.finished)
        await until(pilot, lambda: shown.options[0].id == f"run {job.run_ids[0]}")
        assert not lines(app, "mine") and lines(app, "✓ bank refresh")


@pytest.mark.parametrize("kind", ["bank refresh", "quick"])
async def test_jobs_of_other_processes_are_shown_beside_one_of_the_window(used_store: Path, kind: str) -> None:
    gate = threading.Event()
    document = {"task": 'name = "mine"'}

    def work(reg: Registry) -> Iterator[Event]:
        with record_request(reg, kind, document), record_request(reg, "bank build", {}):
            yield JobStarted(kind, total=4, unit="steps")
            gate.wait(PATIENCE)

    async with open_app(used_store, (120, 50)) as (app, pilot):
        job = app.job_queue.add_job(kind, "mine", work)
        await until(pilot, lambda: len(job.run_ids) == 2)
        with Registry.open(used_store) as other:
            for status in ("interrupted", "done"):
                time.sleep(1.1)  # times of runs are in seconds
                bank = other.banks.all()[0].id
                if status == "done":
                    with record_request(other, "eval tune", {}, bank_id=bank):
                        pass
                else:
                    other.runs.start_run("bank build", {}, bank_id=bank)
            await pilot.press("1")
            await settled(app, pilot)
            await pilot.press("0")
            await settled(app, pilot)
            try:
                assert lines(app, f"▶ {kind} mine") and not lines(app, "↗", kind)
                assert len(lines(app, "eval tune lamp-2 v1")) == 1
                assert len(lines(app, "bank build")) == 1, "and none of this window's own parts"
            finally:
                gate.set()


async def test_a_failed_job_says_why_and_leads_to_jobs(demo_store: Path) -> None:
    def fail(reg: Registry) -> Iterator[Event]:
        raise ValueError("no such luck")
        yield JobStarted("never")

    async with open_app(demo_store) as (app, pilot):
        job = app.job_queue.add_job("data import", "a.csv", fail)
        await until(pilot, lambda: job.finished)
        await settled(app, pilot)
        assert lines(app, "✗ data import a.csv", "no such luck")
        app.screen.query_one("#jobs").focus()
        await pilot.press("enter")
        await settled(app, pilot)
        assert app.current_mode == "jobs"


async def test_a_file_of_ones_own_ends_with_its_verdict_on_this_screen(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "measure_row_rate", lambda *_: 5.0)
    go_on = hold_jobs(monkeypatch)

    async with open_app(empty_store) as (app, pilot):
        await pilot.press("f")
        form = await form_of(app, pilot)
        form.query_one(".editor").value = str(BOOKS)  # type: ignore[attr-defined]
        await until(pilot, lambda: "reader (guessed)" in screen_text(app))
        assert lines(app, "output", "stars (guessed)") and lines(app, "input", "{book}. {about} (guessed)")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: form.plan_shown)
        assert lines(app, "user", "reader", "guessed")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bool(app.job_queue.jobs))
        await until(pilot, lambda: bool(lines(app, "▸ Watch quick books.csv")))
        go_on.set()
        await until(pilot, lambda: app.job_queue.jobs[0].finished)
        await settled(app, pilot)
        job = app.job_queue.jobs[0]
        assert job.state == "done" and app.current_mode == "home", job.log
        found = job.result
        (row,) = lines(app, "✓ quick books")
        assert short_verdict(found["ladder"])[:20] in row
        assert lines(app, f"books, {found['measured_users']} measured users: worth it: ")
        assert lines(app, "Helped most", f"evaluation {found['evaluation']}")
        assert not lines(app, "bank build") and not lines(app, "There are no users yet")
        assert lines(app, "▸ Chat with") and not lines(app, "Watch")


async def test_what_was_measured_is_read_again_only_after_a_change(
    used_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mta_cli.tui.screens import home

    reads, load = [], home.load_gains
    monkeypatch.setattr(home, "load_gains", lambda *rest: reads.append(1) or load(*rest))

    async with open_app(used_store) as (app, pilot):
        for _ in range(2):
            await pilot.press("1")
            await settled(app, pilot)
            await pilot.press("0")
            await settled(app, pilot)
        assert len(reads) == 1
        app.store_changes += 1
        app.select_user("ida")
        await settled(app, pilot)
        assert len(reads) == 2


async def test_a_long_reading_of_answers_holds_up_no_screen(used_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.tui.screens import home

    gate, load = threading.Event(), home.load_gains
    monkeypatch.setattr(home, "load_gains", lambda *rest: gate.wait(PATIENCE) and load(*rest))

    app = MtaApp(used_store, Settings.load(used_store))
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(lines(app, "12 users")))
        assert not lines(app, "Helped most")
        await pilot.press("1")
        await until(pilot, lambda: bool(lines(app, "user7")))
        await pilot.press("0")
        gate.set()
        await until(pilot, lambda: bool(lines(app, "Helped most")))


@pytest.mark.parametrize("width", [36, 44, 90])
def test_a_gain_has_a_bar_where_there_is_room(width: int) -> None:
    line = gain_line(UserGain("a name that is far too long for a column", 0.25, 0.5, 0.25), 0.5, width)
    assert line.cell_len <= width and "0.250 → 0.500" in line.plain and "+.250" in line.plain
    assert ("━" in line.plain) == (width == 90)


def test_a_job_without_an_end_has_no_age() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    job = Job(1, "quick", "a.csv", lambda reg: iter(()))
    assert window_job_line(job, 60, now).plain.split() == ["·", "quick", "a.csv", "waiting"]
    job.state, job.ended_at = "done", (now - timedelta(hours=3)).timestamp()
    assert window_job_line(job, 60, now).plain.rstrip().endswith("3 h ago")
