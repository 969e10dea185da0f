"""`u` takes back the answer that the window kept last, as `/undo` in a chat does, and says what it did."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from mta_cli.events import ItemKept
from mta_cli.pipeline.chat.conversation import add_exchange_as_item
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.basic import ConfirmDialog, ErrorDialog
from store.registry import Registry
from tests.pipeline import town
from tests.tui.driving import notices, open_app, screen_text, settled, until
from tests.tui.voices import compare_without_task, enter, only_voices, press_and_hear, type_and_ask


@pytest.fixture(autouse=True)
def voices(monkeypatch: pytest.MonkeyPatch) -> None:
    only_voices(monkeypatch)


async def keep(app: MtaApp, question: str, answer: str = "comedy", task: str = "lamp-2") -> ItemKept:
    """Keep an answer for ida, as Compare does."""
    return await app.store_thread.run(
        lambda reg: add_exchange_as_item(reg, reg.users.get("ida"), task, question, answer)
    )


async def undo(app: MtaApp, pilot: Pilot[None], jobs: int) -> None:
    """Press u and wait for the end of its job, the window's last of so many."""
    await pilot.press("u")
    await until(pilot, lambda: len(app.job_queue.jobs) == jobs and app.job_queue.jobs[-1].finished)
    await settled(app, pilot)


def questions(store: Path, task: str = "lamp-2") -> list[str]:
    with Registry.open(store) as reg:
        return [item.input for item in reg.items.recent_items(reg.users.get("ida").id, task, 9)]


async def test_answers_are_taken_back_one_by_one_and_then_there_is_nothing(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        told = notices(app)
        await pilot.press("u")
        await until(pilot, lambda: told == ["nothing to undo: no answer was kept in this window"])
        await keep(app, "first?", task="free")
        await keep(app, "second?", task="free")
        await undo(app, pilot, 1)
        assert told[1:] == ["undone: ida, free: second? → comedy"] and questions(demo_store, "free") == ["first?"]
        await undo(app, pilot, 2)
        assert told[2:] == ["undone: ida, free: first? → comedy"] and questions(demo_store, "free") == []
        await pilot.press("u")
        await until(pilot, lambda: len(told) == 4)
        assert told[3].startswith("nothing to undo") and len(app.job_queue.jobs) == 2


async def test_a_kept_exchange_of_the_chat_is_taken_back_and_can_be_kept_again(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "t")
        await type_and_ask(app, pilot, "what next?")
        await press_and_hear(app, pilot, "escape", "g")
        assert questions(demo_store, "free") == ["what next?"]
        await press_and_hear(app, pilot, "g")
        assert "is a history item already" in screen_text(app)
        await undo(app, pilot, 1)
        assert questions(demo_store, "free") == []
        await press_and_hear(app, pilot, "g")
        assert questions(demo_store, "free") == ["what next?"]


async def test_a_kept_column_of_compare_is_taken_back_and_can_be_kept_again(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await compare_without_task(app, pilot, "ida", "what next?")
        await pilot.press("escape", "right", "g")
        await settled(app, pilot)
        assert questions(demo_store, "free") == ["what next?"]
        await pilot.press("g")
        await settled(app, pilot)
        assert "already" in screen_text(app)
        await undo(app, pilot, 1)
        assert questions(demo_store, "free") == []
        await pilot.press("g")
        await settled(app, pilot)
        assert questions(demo_store, "free") == ["what next?"]


async def test_models_that_were_made_from_the_answer_are_asked_about(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await keep(app, "a film")
        with Registry.open(demo_store) as reg:
            town.finish(fuse_user(reg, reg.users.get("ida"), town.fuse_request()))
        await pilot.press("u")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        assert "Remove ida, lamp-2: a film → comedy?" in screen_text(app) and "recipes: 1" in screen_text(app)
        await pilot.press("n")
        await settled(app, pilot)
        assert "a film" in questions(demo_store) and not app.job_queue.jobs
        await pilot.press("u")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await until(pilot, lambda: bool(app.job_queue.jobs) and app.job_queue.jobs[0].finished)
        assert "a film" not in questions(demo_store)


async def test_while_jobs_run_it_asks_because_they_may_use_the_answer(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(demo_store) as (app, pilot):
        await keep(app, "a film")
        monkeypatch.setattr(type(app.job_queue), "has_unfinished_jobs", property(lambda queue: True))
        await pilot.press("u")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        assert "what unfinished jobs make from it" in screen_text(app)
        await pilot.press("n")
        await settled(app, pilot)
        assert "a film" in questions(demo_store)


async def test_an_answer_that_is_gone_already_is_said_to_be(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        told = notices(app)
        kept = await keep(app, "a film")
        with Registry.open(demo_store) as reg:
            from mta_cli.pipeline.users.removal import remove_items

            list(remove_items(reg, "ida", [kept.name], task="lamp-2"))
        await pilot.press("u")
        await until(pilot, lambda: len(told) == 1)
        assert told == ["nothing to undo: the answer that was kept last is removed already"]
        await pilot.press("u")
        await until(pilot, lambda: len(told) == 2)
        assert told[1] == "nothing to undo: no answer was kept in this window"


async def test_what_fails_is_shown_and_can_be_undone_later(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await keep(app, "a film", task="free")
        with Registry.open(demo_store) as reg, reg.hold_users("adaptation", [reg.users.get("ida").id]):
            await pilot.press("u")
            await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
            assert "adaptation is using ida's items" in screen_text(app)
            await pilot.press("escape")
            await settled(app, pilot)
        await undo(app, pilot, 2)
        assert questions(demo_store, "free") == []
