"""The window itself: screens by key and click, help, errors, the palette, leaving. Screens are of one line."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
from textual._xterm_parser import XTermParser
from textual.app import ComposeResult
from textual.command import Command, CommandList
from textual.events import Key
from textual.widgets import Input, Log, Static

from mta_cli.errors import BadInput, NotFound
from mta_cli.events import ArtifactSaved, Event, JobProgress, JobStarted
from mta_cli.tui.app import MtaApp
from mta_cli.tui.command_palette import CommandProvider
from mta_cli.tui.dialogs.basic import ClosingDialog, ConfirmDialog, ErrorDialog, HelpDialog
from mta_cli.tui.dialogs.form import Form, FormDialog, FormField
from mta_cli.tui.dialogs.job_forms import queue_job_from_form
from mta_cli.tui.screens.base import SCREEN_TITLES, BaseScreen
from mta_cli.tui.workers.job_queue import Job, JobUpdated
from store.registry import Registry
from tests.tui.driving import notices, open_app, screen_text, settled, until

MODES = MtaApp.MODES  # before the fixture puts cells in their place
heard: list[object] = []


class Cell(BaseScreen):
    """A screen with one input that tells what it hears."""

    HELP: ClassVar[str] = "This is the help of a cell."

    def compose_body(self) -> ComposeResult:
        yield Static(f"in {self.SCREEN_NAME}")
        yield Input(id="words")
        yield Log()

    async def reload(self) -> None:
        heard.append(f"reload {self.SCREEN_NAME}")

    def on_job_updated(self, message: JobUpdated) -> None:
        heard.append(message.job.state)


@pytest.fixture(autouse=True)
def cells(monkeypatch: pytest.MonkeyPatch) -> None:
    heard.clear()
    made = {name: type(f"{title}Cell", (Cell,), {"SCREEN_NAME": name}) for name, title in SCREEN_TITLES.items()}
    monkeypatch.setattr(MtaApp, "MODES", made)
    monkeypatch.setattr(MtaApp, "DEFAULT_MODE", "users")


async def ended(job: Job) -> None:
    """Wait for a job whose window is gone."""
    while not job.finished:
        await asyncio.sleep(0.01)


async def no_focus(app: MtaApp) -> None:
    app.screen.set_focus(None)


async def test_screens_are_reached_by_number_and_by_click(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        assert "in users" in screen_text(app) and "1 Users" in screen_text(app).splitlines()[0]
        await pilot.press("5")
        await settled(app, pilot)
        assert "in chat" in screen_text(app)
        await pilot.click("ScreenTab:first-of-type")
        await settled(app, pilot)
        assert "in home" in screen_text(app)
        assert [heard.count(f"reload {name}") for name in ("users", "chat", "home")] == [1, 1, 1]


async def test_a_number_that_is_typed_stays_in_the_input(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.screen.query_one(Input).focus()
        await pilot.press("5", "q")
        assert app.screen.query_one(Input).value == "5q" and "in users" in screen_text(app)


async def test_help_names_the_screen_and_its_keys(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        await pilot.press("f1")
        await settled(app, pilot)
        assert isinstance(app.screen, HelpDialog)
        shown = screen_text(app)
        assert "This is the help of a cell." in shown and "Close the window; asks while a job runs" in shown
        await pilot.press("escape")
        assert isinstance(app.screen, Cell)


async def test_an_error_shows_message_hint_and_faults_and_can_be_copied(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.show_error(BadInput("the file\x1b[31m is bad [b]", hint="mend it", faults=("line 3: no\x07 word",)))
        await settled(app, pilot)
        shown = screen_text(app)
        assert "the file[31m is bad [b]" in shown and "Try: mend it" in shown and "line 3: no word" in shown
        await pilot.press("c")
        assert app.clipboard == "the file[31m is bad [b]\n\nline 3: no word"
        await pilot.press("escape")
        assert not isinstance(app.screen, ErrorDialog)


async def test_a_reading_that_fails_is_told_and_the_window_stays(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reload(self: Cell) -> None:
        raise NotFound("there is no such bank")

    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        monkeypatch.setattr(Cell, "reload", reload)
        await pilot.press("3")
        await settled(app, pilot)
        assert "there is no such bank" in screen_text(app)
        await pilot.press("enter")
        await settled(app, pilot)
        assert isinstance(app.screen, Cell), "it is not read again"
        app.select_user("ida")
        await settled(app, pilot)
        assert isinstance(app.screen, ErrorDialog)


async def test_a_failed_job_is_told_on_screens_that_do_not_show_it(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(dialog: FormDialog) -> dict[str, str]:
        return {field.name: field.initial_value for field in dialog.form.fields}

    async with open_app(empty_store) as (app, pilot):
        told = notices(app)
        monkeypatch.setattr(app, "push_screen_wait", submit)
        for screen in ("users", "jobs"):
            app.show_screen(screen)
            job = await queue_job_from_form(app, "data import", path="gone.csv")
            assert job is not None
            await until(pilot, partial(lambda job: job.finished, job))
            assert told == ["data import gone.csv: failed; press 4 to see why"]


async def test_a_long_question_scrolls_above_its_answers(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.push_screen(ConfirmDialog("\n".join(f"line {n}" for n in range(40))))
        await settled(app, pilot)
        assert "line 0" in screen_text(app) and "Yes" in screen_text(app)
        await pilot.press(*["pagedown"] * 4)
        await settled(app, pilot)
        assert "line 39" in screen_text(app) and "Yes" in screen_text(app)


async def test_a_reading_ends_although_a_job_saves_meanwhile(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = asyncio.Event()

    async def reload(self: Cell) -> None:
        heard.append("begins")
        await go_on.wait()
        heard.append("ends")

    async with open_app(empty_store) as (app, pilot):
        monkeypatch.setattr(Cell, "reload", reload)
        heard.clear()
        for _ in range(3):
            job = Job(1, "user adapt", "ida", lambda reg: iter(()))
            job.unreported_saves = 1
            app.on_job_updated(JobUpdated(job))
            await pilot.pause()
        go_on.set()
        await settled(app, pilot)
        assert [word for word in heard if word in ("begins", "ends")] == ["begins", "ends"] * 2


async def test_a_chosen_user_is_told_to_the_screen_and_shown_above_it(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.select_user("ida\x1b[2J")
        await settled(app, pilot)
        assert heard.count("reload users") == 2
        assert "● ida[2J" in screen_text(app).splitlines()[0]
        app.select_user("anna.smith@example.com")
        await settled(app, pilot)
        assert "● anna.smith@" in screen_text(app).splitlines()[0]


async def test_a_screen_that_is_not_there_yet_reads_the_store_once_it_is(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.show_screen("results")
        app.select_user("ida")
        assert not app.screen.is_mounted and "reload results" not in heard
        await settled(app, pilot)
        assert heard.count("reload results") == 1


async def test_the_bar_keeps_the_user_and_the_job_apart(empty_store: Path) -> None:
    async with open_app(empty_store, size=(120, 24)) as (app, pilot):
        app.select_user("fleur")
        job = app.job_queue.add_job("user adapt", "a walk", forever)
        await until(pilot, lambda: job.progress.done > 1)
        await settled(app, pilot)
        assert screen_text(app).splitlines()[0].rstrip().endswith("● fleur  ▶ user adapt")
        app.job_queue.stop_job(job)
        await until(pilot, lambda: job.finished)
        await settled(app, pilot)
        assert screen_text(app).splitlines()[0].rstrip().endswith("● fleur")


async def test_f1_explains_a_field_of_a_form_and_goes_back_to_it(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        field = FormField("rank", "rank", default_text="8", help="Rank of each meta-LoRA.", setting_key="bank.rank")
        app.push_screen(FormDialog(Form("bank build", (field,))))
        await settled(app, pilot)
        await pilot.press("f1")
        await settled(app, pilot)
        shown = screen_text(app)
        assert isinstance(app.screen, HelpDialog) and "rank: Rank of each meta-LoRA." in shown
        assert "Setting: bank.rank" in shown and "Show the plan, then start" in shown
        await pilot.press("f1")
        await settled(app, pilot)
        assert isinstance(app.screen, FormDialog) and isinstance(app.focused, Input)


async def test_z_enlarges_the_pane_with_the_focus_and_gives_the_room_back(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        told = notices(app)
        await no_focus(app)
        await pilot.press("z")
        await pilot.pause()
        assert app.screen.maximized is None and told == ["focus a pane with Tab first; z enlarges it"]
        app.screen.query_one(Log).focus()
        await pilot.press("z")
        await pilot.pause()
        assert app.screen.maximized is app.screen.query_one(Log) and "in users" not in screen_text(app)
        await pilot.press("z")
        await pilot.pause()
        assert app.screen.maximized is None and "in users" in screen_text(app)


def steps(reg: Registry) -> Iterator[Event]:
    yield JobStarted("walk", total=3)
    for done in (1, 2, 3):
        yield JobProgress("far", done, loss=1.0 / done)
    yield ArtifactSaved("thing", "one")


def forever(reg: Registry) -> Iterator[Event]:
    yield JobStarted("walk")
    done = 0
    while True:
        done += 1
        yield JobProgress("far", done)


async def test_a_job_is_told_to_the_screen_and_what_it_saved_makes_it_read_again(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        job = app.job_queue.add_job("walk", "a walk", steps)
        await until(pilot, lambda: job.finished and "done" in heard)
        assert app.store_changes >= 1 and heard.count("reload users") >= 2
        assert job.progress.losses == [1.0, 0.5, 1 / 3] and job.log == ["saved thing one"]


async def test_leaving_asks_while_a_job_runs_and_closing_stops_it(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        job = app.job_queue.add_job("walk", "a long walk", forever)
        app.job_queue.add_job("user rm", "ann", steps)
        await until(pilot, lambda: job.progress.done > 10)
        await pilot.press("q")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        shown = screen_text(app)
        assert "a long walk is running" in shown and "user rm · ann" in shown
        assert "current step.  " in shown, "and no promise that it can go on later"
        await pilot.press("n")
        assert app.is_running and job.state == "running"
    await ended(job)
    assert job.state == "stopped"


async def test_closing_waits_for_the_current_step_and_says_so(empty_store: Path) -> None:
    gate = threading.Event()
    kept = list[int]()

    def slow(reg: Registry) -> Iterator[Event]:
        try:
            yield JobProgress("far", 1)
            gate.wait(30)
            yield JobProgress("far", 2)
        finally:
            kept.append(len(reg.users.names()))  # what a checkpoint needs: the registry is open

    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        job = app.job_queue.add_job("walk", "a long walk", slow)
        await until(pilot, lambda: job.progress.done == 1)
        await app.action_quit()
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await until(pilot, lambda: isinstance(app.screen, ClosingDialog))
        assert "a long walk: the window closes after the current step" in screen_text(app) and app.is_running
        await pilot.press("ctrl+q")
        assert isinstance(app.screen, ClosingDialog) and kept == []
        gate.set()
        await until(pilot, lambda: not app.is_running)
        assert (job.state, job.progress.done, kept) == ("stopped", 2, [0])


async def test_leaving_with_nothing_at_work_closes_at_once(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)


async def test_ctrl_q_closes_over_a_dialog_and_while_typing_but_answers_no_question(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.push_screen(ConfirmDialog("Remove it?"))
        await pilot.pause()
        await pilot.press("ctrl+q")
        assert app.is_running and isinstance(app.screen, ConfirmDialog)
        await pilot.press("n")
        app.push_screen(HelpDialog("Keys", []))
        await pilot.pause()
        await pilot.press("ctrl+q")
        await until(pilot, lambda: not app.is_running)


async def test_what_is_pasted_into_an_input_sends_nothing_to_the_terminal(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        app.screen.query_one(Input).value = "one\x1b]0;PWNED\x07two\u202ethree"
        await settled(app, pilot)
        shown = screen_text(app)
        assert "one]0;PWNEDtwothree" in shown and not {"\x1b", "\x07", "\u202e"}.intersection(shown)


async def test_the_palette_goes_to_screens(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        await no_focus(app)
        await pilot.press("ctrl+p")
        await pilot.press(*"go to results")
        await until(pilot, lambda: "Go to Results" in screen_text(app) and "Go to Users" not in screen_text(app))
        for _ in range(100):  # the palette takes no Enter while it still searches
            await pilot.press("enter")
            await pilot.pause(0.1)
            if "in results" in screen_text(app):
                break
        assert "in results" in screen_text(app)


async def test_the_palette_selects_a_user_by_the_name_as_it_is_stored(empty_store: Path) -> None:
    with Registry.open(empty_store, create=True) as reg:
        reg.users.add("ann  lee")

    async with open_app(empty_store) as (app, pilot):
        hits = [hit async for hit in CommandProvider(app.screen).search("ann")]
        hits[-1].command()  # type: ignore[unused-coroutine]
        await until(pilot, lambda: app.selected_user == "ann  lee")


async def test_the_palette_knows_the_commands_of_all_screens(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MtaApp, "MODES", MODES)

    async with open_app(empty_store) as (app, pilot):
        await pilot.press("ctrl+p")
        await pilot.press(*"bank build")
        found = app.screen.query_one(CommandList)
        for _ in range(100):  # the palette takes no Enter while it still searches, and its first command changes
            first = found.highlighted_option
            if isinstance(first, Command) and str(first.hit.prompt) == "Jobs: Bank build":
                await pilot.press("enter")
            await pilot.pause(0.1)
            if isinstance(app.screen, FormDialog):
                break
        assert app.current_mode == "jobs" and "The task adapter, and anchors" in screen_text(app)


async def test_a_command_of_another_screen_that_has_nothing_to_work_on_says_so(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MtaApp, "MODES", MODES)

    async with open_app(empty_store) as (app, pilot):
        told = notices(app)
        app.run_screen_action("jobs", "resume")
        await until(pilot, lambda: told == ["this action has nothing to act on yet"])
        assert app.current_mode == "jobs"


def test_alt_and_a_digit_is_a_key_also_where_a_terminal_sends_it_as_escape_and_digit() -> None:
    keys = []
    for digit in "16":
        parser = XTermParser()
        seen = [*parser.feed(f"\x1b{digit}"), *parser.feed("")]  # nothing follows
        keys += [event.key for event in seen if isinstance(event, Key)]
    assert keys == ["alt+1", "alt+6"]
