"""The Compare screen: questions typed and picked; answers measured, stopped, kept, hostile."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, OptionList

from mta_cli.errors import IntegrityFault, NotFound, UsageError
from mta_cli.events import Event, JobResult, TextChunk
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.chat.compare import compare_queries
from mta_cli.pipeline.users.removal import remove_user
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.basic import ConfirmDialog, ErrorDialog
from mta_cli.tui.dialogs.user_picker import UserPicker
from mta_cli.tui.screens.compare import UserQueries
from mta_cli.tui.widgets.answers import AnswerColumn, AnswerColumns
from mta_cli.tui.widgets.prompt import PromptArea
from mta_cli.tui.widgets.score_strips import ScoreStrips
from mta_cli.tui.workers.model_worker import WorkerContext
from store.records import NewItem
from store.registry import Registry
from tests.tui.driving import notices, open_app, screen_text, settled, until
from tests.tui.voices import (
    answered,
    compare_without_task,
    enter,
    only_voices,
    press_and_hear,
    turn,
    type_and_ask,
)


@pytest.fixture(autouse=True)
def voices(monkeypatch: pytest.MonkeyPatch) -> None:
    only_voices(monkeypatch)


def answers(app: MtaApp) -> AnswerColumns:
    return app.screen.query_one(AnswerColumns)


async def test_without_a_user_the_screen_says_what_to_press(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", None)
        await pilot.press("i", "p")
        assert "No user selected" in screen_text(app) and "i Type" not in screen_text(app) and app.focused is None
        app.select_user("ida")
        await settled(app, pilot)
        assert "No user selected" not in screen_text(app) and "prompt lamp-2 (t changes it)" in screen_text(app)
        assert "i Type" in screen_text(app)


async def test_a_typed_question_is_answered_in_every_column(demo_store: Path) -> None:
    async with open_app(demo_store, size=(108, 40)) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        await pilot.press("t")
        await type_and_ask(app, pilot, "what next?")
        assert answers(app).column_keys == ["base", "common", "fused", "adapted"]
        shown = screen_text(app)
        assert "12 tokens" in shown and "/s" in shown and "lamp-2 v1" in shown
        assert app.screen.query_one(PromptArea).text == "what next?"
        regions = [column.region for column in app.screen.query(AnswerColumn)]
        assert len({region.x for region in regions}) == 4 and len({region.y for region in regions}) == 1
        assert regions == sorted(regions, key=lambda region: region.x)
        assert "base+examples" in shown and "3 own examples shown" in shown


async def test_a_picked_question_shows_the_gold_and_how_good_each_answer_is(demo_store: Path) -> None:
    async with open_app(demo_store, size=(108, 40)) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await press_and_hear(app, pilot, "p", "down", "enter")
        shown = screen_text(app)
        assert "another ship 1" in app.screen.query_one(PromptArea).text
        assert "prompt lamp-2" in shown and "gold comedy: common " in shown and " points" in shown
        assert shown.count("gold at ") == 4 and shown.count("✓ right") + shown.count("✗ wrong") == 4
        assert shown.count("✓ comedy") + shown.count("◆ comedy") == 4
        assert "dystop…" in shown, "a long label is cut"


async def test_changed_words_are_no_held_out_question_any_more(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "compare", "ida")
        await press_and_hear(app, pilot, "escape", "p", "enter")
        assert screen._last_request.question.held_out
        await type_and_ask(app, pilot, "!")
        assert screen._last_request.question.gold is None and screen._last_request.task == "lamp-2"
        assert "gold" not in screen_text(app)


async def test_a_new_question_takes_the_place_of_the_last_one(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        prompt = app.screen.query_one(PromptArea)
        prompt.replace_text("the last question")
        app.screen.set_focus(None)
        await pilot.press("i", "n", "e", "w")
        assert prompt.text == "new"
        app.select_user("jon")
        await settled(app, pilot)
        assert prompt.text == ""


async def test_all_columns_wait_from_the_start_and_say_for_what(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), WorkerContext.chat_model_for

    def slow(self: WorkerContext, *rest: Any) -> ChatModel:
        gate.wait(30)
        return load(self, *rest)

    monkeypatch.setattr(WorkerContext, "chat_model_for", slow)

    async with open_app(demo_store, size=(108, 40)) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.query_one(PromptArea).focus()
        await pilot.press("a", "enter")
        await until(pilot, lambda: len(re.findall("loading the base … [1-9]", screen_text(app))) == 4)
        assert answers(app).column_keys == ["base", "common", "fused", "adapted"]
        gate.set()
        await answered(app, pilot)
        assert "loading" not in screen_text(app)


async def test_the_selected_answer_is_copied(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        answers(app).append_answer("base", "one")
        answers(app).append_answer("fused", "two")
        app.screen.set_focus(None)
        told = notices(app)
        await pilot.press("y")
        assert app.clipboard == "one" and told == ["copied"]
        await pilot.press("right", "right", "y")
        assert app.clipboard == "two"


async def test_a_user_without_a_model_is_not_said_to_answer_beside(demo_store: Path) -> None:
    async with open_app(demo_store, size=(120, 40)) as (app, pilot):
        screen = await enter(app, pilot, "compare", "ida")
        screen._other_users.append("kim")
        await type_and_ask(app, pilot, "a ship")
        shown = screen_text(app)
        assert "kim has no model of their own" in shown and "and users" not in shown
        assert answers(app).column_keys == ["base", "common", "fused", "adapted"]


async def test_a_name_and_enter_at_once_choose_that_user(demo_store: Path) -> None:
    """As when a name is pasted: who fits what was typed before is nobody's choice."""

    async with open_app(demo_store, size=(120, 40)) as (app, pilot):
        picker, chosen = UserPicker("Who?"), list[str | None]()
        app.push_screen(picker, chosen.append)
        await settled(app, pilot)
        assert picker._names[0] != "jon"
        words = picker.query_one(Input)
        words.value = "jon"
        await words.action_submit()
        await until(pilot, lambda: bool(chosen))
        assert chosen == ["jon"]


async def test_a_store_that_cannot_be_read_is_told_by_the_picker(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(query: object) -> None:
        raise IntegrityFault("the store is damaged")

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        monkeypatch.setattr(app.store_thread, "run", fail)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        assert "the store is damaged" in screen_text(app)


async def test_another_user_answers_beside(demo_store: Path) -> None:
    async with open_app(demo_store, size=(108, 40)) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.query_one(PromptArea).replace_text("what next?")
        app.screen.set_focus(None)
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, UserPicker))
        await settled(app, pilot)
        await pilot.press(*"jo")
        await settled(app, pilot)
        await press_and_hear(app, pilot, "enter")
        assert answers(app).column_keys == ["base", "common", "fused", "adapted", "@jon"]
        assert "jon · fused" in screen_text(app) and "and users jon" in screen_text(app)
        widths = {column.region.width for column in app.screen.query(AnswerColumn)}
        assert max(widths) - min(widths) <= 1
        app.screen.set_focus(None)
        await press_and_hear(app, pilot, "x", "r")
        assert answers(app).column_keys == ["base", "common", "fused", "adapted"]


async def test_another_user_who_was_removed_leaves_the_comparison(demo_store: Path) -> None:
    async with open_app(demo_store, size=(120, 40)) as (app, pilot):
        screen = await enter(app, pilot, "compare", "ida")
        screen._other_users = ["jon", "user0"]
        with Registry.open(demo_store) as reg:
            list(remove_user(reg, "user0"))
        await type_and_ask(app, pilot, "what next?")
        assert answers(app).column_keys[-1] == "@jon" and screen._other_users == ["jon"]
        assert "user0 was removed meanwhile." in screen_text(app)


async def test_the_chosen_answer_is_kept_as_a_history_item_once(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await pilot.press("t", "g")
        assert "no complete answer to keep yet" in screen_text(app)
        await type_and_ask(app, pilot, "what next?")
        await pilot.press("escape", "right")
        assert answers(app).selected_key == "common"
        column = answers(app)._columns["common"]
        ended, column.ended = column.ended, "repetition"
        await pilot.press("g")
        await settled(app, pilot)
        assert "The answer began to repeat itself, so it is not kept as an example" in screen_text(app)
        column.ended = ended
        await pilot.press("g")
        await settled(app, pilot)
        assert "kept: task free" in screen_text(app)
        await pilot.press("g")
        await settled(app, pilot)
        assert "already" in screen_text(app)
        said = answers(app).answer_of("common")
        with Registry.open(demo_store) as reg:
            (item,) = reg.items.recent_items(reg.users.get("ida").id, "free")
            assert (item.input, item.output) == ("what next?", said)


async def test_a_held_out_question_is_kept_only_when_one_is_sure(demo_store: Path) -> None:
    def kept() -> list[str]:
        with Registry.open(demo_store) as reg:
            return [item.input for item in reg.items.recent_items(reg.users.get("ida").id, "lamp-2")]

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        await press_and_hear(app, pilot, "escape", "p", "enter")
        before = len(kept())
        app.screen.set_focus(None)
        await pilot.press("right", "right", "right")
        assert answers(app).selected_key == "fused"
        for key, more in (("n", 0), ("y", 1)):
            app.screen.query(AnswerColumn).first().focus()
            await pilot.press("g")
            await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
            assert "held out for measurements" in screen_text(app)
            await pilot.press(key)
            await settled(app, pilot)
            assert len(kept()) == before + more


async def test_a_failure_is_told_and_the_prompt_still_holds_the_words(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*rest: Any, **more: Any) -> Any:
        raise NotFound("the model is gone", hint="mta model pull it")

    monkeypatch.setattr("mta_cli.pipeline.chat.answer.ChatModel.load_for_user", gone)

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        await type_and_ask(app, pilot, "what next?")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        assert "the model is gone" in screen_text(app) and "mta model pull it" in screen_text(app)
        await pilot.press("escape")
        assert app.screen.query_one(PromptArea).text == "what next?"
        monkeypatch.undo()
        only_voices(monkeypatch)


async def test_half_an_answer_is_not_kept(demo_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(voice: Any, question: Any, others: Any) -> Iterator[Event]:
        yield TextChunk("half a ", "base")
        raise NotFound("the model is gone")

    monkeypatch.setattr("mta_cli.pipeline.chat.compare.compare_question", breaks)

    async with open_app(demo_store) as (app, pilot):
        await compare_without_task(app, pilot, "ida", "what next?")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        await pilot.press("escape", "escape", "right", "g")
        await settled(app, pilot)
        assert answers(app).selected_key == "base" and "no complete answer to keep yet" in screen_text(app)


def endless(voice: Any, question: Any, others: Any) -> Iterator[Event]:
    while True:
        time.sleep(0.005)  # as a model: the window's thread has its turn
        yield TextChunk("word ", "base")
        yield TextChunk("other ", "fused")


async def test_escape_stops_the_answers_and_another_question_can_be_asked(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        with monkeypatch.context() as patch:
            patch.setattr("mta_cli.pipeline.chat.compare.compare_question", endless)
            app.screen.query_one(PromptArea).focus()
            await pilot.press("a", "enter")
            await until(pilot, lambda: "word word" in screen_text(app))
            await pilot.press("enter")
            assert "being generated" in screen_text(app)
            await pilot.press("escape")
            await answered(app, pilot)
        assert "stopped" in screen_text(app) and "word word" in screen_text(app)
        assert answers(app).column_keys == ["base", "fused"], "the adapted one had said nothing yet"
        await type_and_ask(app, pilot, "b")
        assert len(answers(app).column_keys) == 4


def strip_rows(app: MtaApp) -> list[list[str]]:
    """Name, score and marks of each strip."""
    rows = [
        line.split()
        for line in screen_text(app).splitlines()
        if re.match(r" +(base.*|common.*|fused|adapted|jon) +\d/\d", line)
    ]
    return [[name, score, "".join(marks)] for name, score, *marks in rows]


async def test_all_held_out_questions_fill_a_strip_of_right_and_wrong_for_each_column(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await press_and_hear(app, pilot, "A")
        assert "ida · 2 held-out questions of lamp-2" in screen_text(app) and "Escape stops" not in screen_text(app)
        rows = strip_rows(app)
        assert [name for name, _, _ in rows] == ["base+examples", "common+memory", "fused", "adapted"]
        for _, score, marks in rows:
            assert len(marks) == 2 and set(marks) <= {"✓", "✗"} and score == f"{marks.count('✓')}/2"
        assert app.screen.query_one(PromptArea).text == "another ship 1" and screen._last_request.question.held_out
        assert answers(app).column_keys == ["base", "common", "fused", "adapted"]
        await press_and_hear(app, pilot, "r")
        assert strip_rows(app) == rows, "one question asked again leaves the strips"
        right = screen_text(app).count("✓ right")
        assert right == sum(marks[1] == "✓" for _, _, marks in rows), "the last question's answers are shown"
        app.select_user("jon")
        await settled(app, pilot)
        assert strip_rows(app) == [] and "held-out questions of" not in screen_text(app)


async def test_each_question_stands_above_its_answers_also_when_it_is_gone_from_the_list(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_then_endless(voice: Any, questions: Any, others: Any) -> Iterator[Event]:
        yield from compare_queries(voice, questions[:1], others)
        yield from endless(voice, questions[1], others)

    monkeypatch.setattr("mta_cli.pipeline.chat.compare.compare_queries", first_then_endless)

    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await pilot.press("A")
        screen._user_queries = UserQueries(screen._user_queries.tasks, ())  # as after a removal elsewhere
        await until(pilot, lambda: "word" in screen_text(app))
        assert app.screen.query_one(PromptArea).text == "another ship 1"
        screen._other_users.append("jon")
        await pilot.press("escape")
        await settled(app, pilot)
        assert screen._other_users == ["jon"], "who was chosen meanwhile stays for the next question"


async def test_all_columns_and_strips_are_there_while_the_base_is_loaded(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), WorkerContext.chat_model_for

    def slow(self: WorkerContext, *rest: Any) -> ChatModel:
        gate.wait(30)
        return load(self, *rest)

    monkeypatch.setattr(WorkerContext, "chat_model_for", slow)
    monkeypatch.setattr("mta_cli.tui.screens.compare.MAX_QUERIES_PER_TASK", 2)

    async with open_app(demo_store, size=(108, 40)) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await pilot.press("A")
        await until(pilot, lambda: screen_text(app).count("loading the base …") == 4)
        assert re.search(r"base +· ·\n +common +· ·\n +fused +· ·\n +adapted +· ·", screen_text(app))
        assert "asking 1 of 2, Escape stops" in screen_text(app)
        assert "ida · first 2 held-out questions of lamp-2" in screen_text(app), "as many as are read"
        gate.set()
        await answered(app, pilot)


@pytest.mark.parametrize("key", ["escape", "s"])
async def test_asking_all_is_stopped_by_the_keys_that_stop(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    done = threading.Event()

    def first_only(voice: Any, questions: Any, others: Any) -> Iterator[Event]:
        for event in compare_queries(voice, questions, others):
            yield event
            if isinstance(event, JobResult):
                break
        done.set()
        yield from endless(voice, None, None)

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        with monkeypatch.context() as patch:
            patch.setattr("mta_cli.pipeline.chat.compare.compare_queries", first_only)
            await pilot.press("A")
            await until(pilot, lambda: "asking 2 of 2" in screen_text(app) and done.is_set())
            await pilot.press("A")
            assert "being generated" in screen_text(app)
            await pilot.press(key)
            await answered(app, pilot)
        assert "ida · 2 held-out questions of lamp-2 · stopped, 1 not asked" in screen_text(app)
        assert [marks[1] for _, _, marks in strip_rows(app)] == ["·"] * 4
        await press_and_hear(app, pilot, "A")
        assert all("·" not in marks for _, _, marks in strip_rows(app))


async def test_scores_are_copied_and_enlarged_where_they_have_the_focus(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await press_and_hear(app, pilot, "A")
        rows = strip_rows(app)
        strips = app.screen.query_one(ScoreStrips)
        strips.focus()
        await pilot.press("y", "z")
        scores = ", ".join(f"{name} {score}" for name, score, _ in rows)
        assert app.clipboard == f"ida · 2 held-out questions of lamp-2: {scores}"
        await pilot.pause()
        assert app.screen.maximized is strips and strip_rows(app) == rows
        await pilot.press("z", "right", "z")
        await pilot.pause()
        assert app.screen.maximized is app.screen.query(AnswerColumn).first()


async def test_asking_all_says_what_is_missing(demo_store: Path) -> None:
    with Registry.open(demo_store) as reg:
        reg.users.add("una")
        ida = reg.users.get("ida")
        reg.items.append_queries(ida.id, [NewItem("v", "lamp-3", "a review", "5")])

    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "compare", "una")
        await pilot.press("A")
        assert "una has no held-out questions." in screen_text(app)
        screen = await enter(app, pilot, "compare", "ida")
        assert screen._prompt_task is None
        await pilot.press("A")
        assert "Press t to choose a task first." in screen_text(app) and not turn(app).in_progress


async def test_asking_all_with_an_invalid_setting_begins_nothing(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("answer.temperature is no number")

    monkeypatch.setattr("mta_cli.tui.screens.asking.question_options_from_settings", refuse)
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        app.screen.set_focus(None)
        await pilot.press("A")
        await until(pilot, lambda: "answer.temperature is no number" in screen_text(app))
        await pilot.press("escape")
        assert "asking 1 of" not in screen_text(app) and not turn(app).in_progress


async def test_another_user_empties_the_screen(demo_store: Path) -> None:
    async with open_app(demo_store, size=(120, 40)) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        await type_and_ask(app, pilot, "what next?")
        await pilot.press("escape")
        assert isinstance(app.focused, AnswerColumn)
        app.select_user("kim")
        await settled(app, pilot)
        assert answers(app).column_keys == [] and app.focused is None
        await type_and_ask(app, pilot, "?")
        assert answers(app).column_keys == ["base", "common"] and "mta user fuse kim" in screen_text(app)


async def test_hostile_texts_are_shown_as_letters(demo_store: Path) -> None:
    name = "eve [red]x[/]"
    with Registry.open(demo_store) as reg:
        user = reg.users.add(name)
        reg.items.append_queries(user.id, [NewItem("q", "lamp-2", "a\x1b]0;x\x07 [bold]film[/bold]", "comedy")])

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", name)
        app.screen.set_focus(None)
        await pilot.press("p")
        assert "a]0;x [bold]film[/bold]" in screen_text(app)
        app.screen.query_one("#questions", OptionList).focus()
        answers(app).append_answer("base", "\x1b[2J[red]boo[/red] \u202egnirts")
        await pilot.pause()
        await settled(app, pilot)
        shown = screen_text(app)
        assert "[2J[red]boo[/red] gnirts" in shown
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}


async def test_a_paste_holds_no_control_characters(demo_store: Path) -> None:
    from textual import events

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "compare", "ida")
        prompt = app.screen.query_one(PromptArea)
        prompt.focus()
        app.post_message(events.Paste("one\x1b[31m\ntwo\x9b"))
        await until(pilot, lambda: "two" in prompt.text)
        assert prompt.text == "one[31m\ntwo"
