"""The screen for conversations: said, stored, searched, gone on with, stopped, given back, and hostile Markdown."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, OptionList

from mta_cli.errors import NotFound
from mta_cli.events import ArtifactSaved, Event, TextChunk
from mta_cli.pipeline.chat.answer import ChatModel, Generation
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.tui.app import MtaApp
from mta_cli.tui.dialogs.basic import ConfirmDialog, ErrorDialog
from mta_cli.tui.widgets.answer_reasons import ReasonsPane
from mta_cli.tui.widgets.markdown_reply import AnswerMarkdown
from mta_cli.tui.widgets.prompt import PromptArea
from mta_cli.tui.widgets.waiting import WaitingLine
from mta_cli.tui.workers.model_worker import WorkerContext
from store.records import Message
from store.registry import Registry
from tests.tui.driving import open_app, screen_text, settled, until
from tests.tui.voices import answered, enter, only_voices, press_and_hear, turn, type_and_ask


@pytest.fixture(autouse=True)
def voices(monkeypatch: pytest.MonkeyPatch) -> None:
    only_voices(monkeypatch)


def stored(store: Path, person: str) -> list[list[Message]]:
    """The user's conversations, newest first."""
    with Registry.open(store) as reg:
        return [reg.chats.messages(chat.id) for chat in reg.chats.of_user(reg.users.get(person).id)]


def remember(store: Path, person: str, title: str, *turns: str) -> int:
    """A stored conversation."""
    with Registry.open(store) as reg:
        chat = reg.chats.start_chat(reg.users.get(person).id, title)
        for number, words in enumerate(turns):
            role, source = (("user", {}), ("assistant", {"mode": "fused"}))[number % 2]
            reg.chats.add_message(chat.id, role, words, source)
        return chat.id


def replies(app: MtaApp) -> list[str]:
    return [reply.answer_text for reply in app.screen.query(AnswerMarkdown)]


async def test_without_a_user_the_screen_says_what_to_press(empty_store: Path) -> None:
    async with open_app(empty_store) as (app, pilot):
        await enter(app, pilot, "chat", None)
        assert "No user selected" in screen_text(app)
        app.select_user("somebody who is not there")
        await settled(app, pilot)
        assert "No user selected" in screen_text(app)


async def test_without_a_user_every_key_works(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", None)
        await pilot.press("i", "h", "n", "2")
        await settled(app, pilot)
        assert app.current_mode == "compare"
        await enter(app, pilot, "chat", "ida")
        assert isinstance(app.focused, PromptArea)
        app.select_user(None)
        await settled(app, pilot)
        await pilot.press("1")
        await settled(app, pilot)
        assert app.current_mode == "users"


async def test_a_digit_is_typed_into_the_prompt_which_says_how_other_screens_are_reached(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        assert "Esc leaves the prompt: then 0…6 and keys work" in screen_text(app)
        await pilot.press("2")
        assert app.screen.query_one(PromptArea).text == "2" and app.current_mode == "chat"
        await pilot.press("alt+1")
        await settled(app, pilot)
        assert app.current_mode == "users"
        await enter(app, pilot, "chat", None)
        assert app.screen.query_one(PromptArea).text == "2"
        app.screen.query_one(PromptArea).focus()
        await pilot.press("escape", "2")
        await settled(app, pilot)
        assert app.current_mode == "compare"


async def test_the_only_task_gives_the_prompt_and_says_how_it_is_answered(demo_store: Path) -> None:
    async with open_app(demo_store, size=(100, 30)) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        told = " ".join(screen_text(app).split())
        assert "prompt lamp-2, each message by itself, answered with one of 15 labels (t changes it)" in told
        await pilot.press("escape", "t")
        assert "a conversation (t changes it)" in screen_text(app)


async def test_what_is_waited_for_is_told_where_the_answer_will_be(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, load = threading.Event(), WorkerContext.chat_model_for

    def slow(self: WorkerContext, *rest: Any) -> ChatModel:
        gate.wait(30)
        return load(self, *rest)

    monkeypatch.setattr(WorkerContext, "chat_model_for", slow)

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        app.screen.query_one(PromptArea).focus()
        await pilot.press("a", "enter")
        await until(pilot, lambda: re.search("loading the base … [1-9]", screen_text(app)) is not None)
        gate.set()
        await answered(app, pilot)
        assert not app.screen.query(WaitingLine) and len(replies(app)) == 1


async def test_what_is_said_is_shown_and_stored_with_its_source(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "t")
        await type_and_ask(app, pilot, "one?")
        await type_and_ask(app, pilot, "two?")
        shown = screen_text(app)
        assert "one?" in shown and "two?" in shown and "adapted · lamp-2 · bank lamp-2 v1 · 12 tokens" in shown
        assert "--max-tokens" not in shown and app.screen.query_one(PromptArea).text == ""
        (messages,) = stored(demo_store, "ida")
        assert [m.content for m in messages] == ["one?", replies(app)[0], "two?", replies(app)[1]]
        assert messages[1].source["mode"] == "adapted"


async def test_mode_and_task_change_who_answers_and_how(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "m", "t", "t")
        assert "model base · prompt lamp-2" in screen_text(app)
        await type_and_ask(app, pilot, "a ship")
        (messages,) = stored(demo_store, "ida")
        assert messages[1].source["mode"] == "base" and messages[1].content in screen_text(app)
        assert "1 token" in screen_text(app) or "tokens" in screen_text(app)


async def test_a_mode_that_is_not_there_is_a_failure_that_gives_the_words_back(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "kim")
        await pilot.press("escape", "m", "m", "m", "m")
        await type_and_ask(app, pilot, "hello")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        assert "kim has no stack" in screen_text(app) and "mta user adapt kim" in screen_text(app)
        await pilot.press("escape")
        await settled(app, pilot)
        assert app.screen.query_one(PromptArea).text == "hello" and replies(app) == []
        assert stored(demo_store, "kim") == []


def words_without_end(self: ChatModel, ids: list[int], spoken: Generation, column: str = "") -> Iterator[Event]:
    while True:
        spoken.text += "more "
        time.sleep(0.005)  # as a model: the window's thread has its turn
        yield TextChunk("more ", column)


async def test_escape_stops_an_answer_and_what_was_said_is_kept(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        with monkeypatch.context() as patch:
            patch.setattr(ChatModel, "stream_answer", words_without_end)
            app.screen.query_one(PromptArea).focus()
            await pilot.press("a", "enter")
            await until(pilot, lambda: any(replies(app)))
            await pilot.press("escape")
            await answered(app, pilot)
        assert "the text so far is kept" in screen_text(app)
        ((question, answer),) = stored(demo_store, "ida")
        assert question.content == "a" and answer.content.startswith("more more ")
        assert answer.content.startswith(replies(app)[0])
        await type_and_ask(app, pilot, "b")
        assert len(stored(demo_store, "ida")[0]) == 4


@pytest.mark.parametrize("way", ["new", "person", "nobody"])
async def test_leaving_a_conversation_while_it_is_answered_keeps_what_was_said(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        with monkeypatch.context() as patch:
            patch.setattr(ChatModel, "stream_answer", words_without_end)
            app.screen.query_one(PromptArea).focus()
            await pilot.press("a", "enter")
            await until(pilot, lambda: any(replies(app)))
            if way == "new":
                await screen.run_action("new")
            else:
                app.select_user("jon" if way == "person" else None)
            await settled(app, pilot)
            await until(pilot, lambda: not app.model_worker.has_pending_requests)
        assert replies(app) == [] and len(stored(demo_store, "ida")[0]) == 2
        if way != "nobody":
            await type_and_ask(app, pilot, "b")
            assert len(replies(app)) == 1 and replies(app)[0]


def broken(self: Conversation, text: str) -> Iterator[Event]:
    raise NotFound("nobody is at home")
    yield


async def test_words_typed_meanwhile_are_not_overwritten_by_those_given_back(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "answer_message", broken)

    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        screen.query_one(PromptArea).focus()
        await pilot.press("a", "enter")
        screen.query_one(PromptArea).replace_text("something new")
        await until(pilot, lambda: isinstance(app.screen, ErrorDialog))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ErrorDialog))
        assert screen.query_one(PromptArea).text == "something new"


async def test_conversations_are_searched_and_gone_on_with(demo_store: Path) -> None:
    remember(demo_store, "ida", "the sea", "what of the sea?", "It has a *lighthouse*.")
    remember(demo_store, "ida", "the town", "what of the town?", "It has a clock.")
    remember(demo_store, "jon", "the lighthouse", "not", "mine")

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "h")
        assert "2 conversations" in screen_text(app)
        await pilot.press(*"light")
        await settled(app, pilot)
        shown = screen_text(app)
        assert "1 conversation" in shown and "lighthouse*" in shown and "the town" not in shown
        await pilot.press("enter", "enter")
        await settled(app, pilot)
        shown = screen_text(app)
        assert "It has a lighthouse." in shown and "what of the sea?" in shown
        await type_and_ask(app, pilot, "and then?")
        town, sea = stored(demo_store, "ida")
        assert len(town) == 2 and [m.content for m in sea[2:]] == ["and then?", replies(app)[-1]]


async def test_the_list_of_conversations_keeps_its_place_while_jobs_save(demo_store: Path) -> None:
    numbers = [remember(demo_store, "ida", f"talk {n}", f"what of {n}?", "this") for n in range(3)]

    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        options = screen.query_one("#chats", OptionList)
        options.highlighted = [chat.id for chat in screen._chats].index(numbers[0])
        job = app.job_queue.add_job("user adapt", "ida", save_something)
        await until(pilot, lambda: job.finished and app.store_changes > 0)
        remember(demo_store, "ida", "talk 3", "what of 3?", "this")
        await screen.reload()
        assert screen._chats[options.highlighted or 0].id == numbers[0]
        screen.query_one("#search", Input).value = "what"
        await settled(app, pilot)
        assert options.highlighted == 0, "the first that the words find"


async def test_a_conversation_gone_on_with_is_part_of_the_prompt(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = remember(demo_store, "ida", "the sea", "what of the sea?", "It has a lighthouse.")
    prompts: list[list[dict[str, str]]] = []
    fitted = ChatModel.fit_prompt

    def seen(self: ChatModel, messages: Any) -> Any:
        prompts.append(list(messages))
        return fitted(self, messages)

    monkeypatch.setattr(ChatModel, "fit_prompt", seen)

    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        await screen._open_chat(chat)
        await pilot.press("escape", "t")
        await type_and_ask(app, pilot, "go on")
        assert [m["content"] for m in prompts[0]] == ["what of the sea?", "It has a lighthouse.", "go on"]


async def test_the_last_exchange_becomes_a_history_item(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "g")
        assert "ask something first" in screen_text(app)
        await pilot.press("t")
        await type_and_ask(app, pilot, "what next?")
        await press_and_hear(app, pilot, "escape", "g")
        assert "kept: task free" in screen_text(app)
        with Registry.open(demo_store) as reg:
            (item,) = reg.items.recent_items(reg.users.get("ida").id, "free")
            assert (item.input, item.output) == ("what next?", replies(app)[0])


async def test_an_exchange_is_kept_for_its_user_also_after_another_had_the_model(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "t")
        await type_and_ask(app, pilot, "what next?")
        session, ends = screen._session, list[object]()

        def take(context: WorkerContext) -> Iterator[Event]:
            context.chat_model_for(context.reg.users.get("jon"), replace(session._answered_with[1], task="lamp-2"))
            yield from ()

        app.model_worker.submit_request(take, ends.append, ends.append)
        await until(pilot, lambda: bool(ends))
        assert ends == [None] and session._conversation.model.user.name == "jon"
        await press_and_hear(app, pilot, "escape", "g")
        with Registry.open(demo_store) as reg:
            (item,) = reg.items.recent_items(reg.users.get("ida").id, "free")
            assert item.input == "what next?" and not reg.items.recent_items(reg.users.get("jon").id, "free")


async def test_a_conversation_is_removed_after_asking(demo_store: Path) -> None:
    chat = remember(demo_store, "ida", "the sea", "what?", "that")

    async with open_app(demo_store) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        await screen._open_chat(chat)
        await pilot.press("escape", "d")
        await until(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await settled(app, pilot)
        assert stored(demo_store, "ida") == [] and replies(app) == []


async def test_n_begins_anew_and_another_user_too(demo_store: Path) -> None:
    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await type_and_ask(app, pilot, "one")
        await pilot.press("escape", "n")
        await settled(app, pilot)
        assert replies(app) == []
        await type_and_ask(app, pilot, "two")
        assert len(stored(demo_store, "ida")) == 2
        app.select_user("jon")
        await settled(app, pilot)
        assert replies(app) == [] and "user jon" in screen_text(app)
        await type_and_ask(app, pilot, "three")
        assert len(stored(demo_store, "jon")) == 1 and len(stored(demo_store, "ida")) == 2


def save_something(reg: Registry) -> Iterator[Event]:
    yield ArtifactSaved("stack", "ida")


def remove_stacks_of_ida(reg: Registry) -> Iterator[Event]:
    for stack in reg.stacks.of_user(reg.users.get("ida").id):
        reg.stacks.remove(stack.user_id, stack.task, stack.bank_id)
        yield ArtifactSaved("stack", "ida")


async def test_the_memory_of_a_conversation_lasts_until_somebody_else_speaks(demo_store: Path) -> None:
    folds: list[object] = []
    become = ChatModel.set_user

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await type_and_ask(app, pilot, "one")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ChatModel, "set_user", lambda *rest: (folds.append(rest), become(*rest)))
            await type_and_ask(app, pilot, "two")
            assert folds == []
            await pilot.press("escape", "m")
            await type_and_ask(app, pilot, "three")
            assert len(folds) == 1
            app.show_screen("compare")
            await settled(app, pilot)
            for change, read in ((save_something, 1), (remove_stacks_of_ida, 2)):
                job = app.job_queue.add_job("user adapt", "ida", change)
                await until(pilot, lambda job=job: job.finished)
                app.show_screen("chat")
                await settled(app, pilot)
                await type_and_ask(app, pilot, "four")
                assert len(folds) == read, "weights are read again where a job has changed them"
                app.show_screen("compare")
                await settled(app, pilot)


HOSTILE = (
    "# Head \x1b[31m\n\n[click](http://example.org) ![pic](http://example.org/x.png) <b>bold</b> <http://example.org>\n\n"
    "&#x202e;turned \u202e**strong** [red]markup[/red] [@click=app.quit]x[/]\n\n```sh\nrm [bold]x[/bold]\n```\n\n"
    "| a | b |\n|---|---|\n| 1 | [u]2[/u] |\n\n[ref]\n\n[ref]: http://example.org\n"
)


async def test_hostile_markdown_is_only_words(demo_store: Path) -> None:
    chat = remember(demo_store, "ida", "bad [red]title[/red]\x1b[2J", "[bold]q[/bold]\x07", HOSTILE)

    async with open_app(demo_store, size=(130, 50)) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        await screen._open_chat(chat)
        await settled(app, pilot)
        shown = screen_text(app)
        for words in (
            "[click](http://example.org)",
            "![pic](http://example.org/x.png)",
            "<b>bold</b>",
            "&#x202e;turned strong",
            "[red]markup[/red]",
            "[@click=app.quit]x[/]",
            "rm [bold]x[/bold]",
            "[u]2[/u]",
            "[bold]q[/bold]",
            "bad [red]title[/red][2J",
            "[ref]: http://example.org",
        ):
            assert words in shown, words
        assert not set(shown) & {"\x1b", "\x07", "\u202e"}
        drawn = app.export_screenshot()
        assert "href" not in drawn
        metas = [meta for strip in _strips(app) for meta in strip]
        assert not [meta for meta in metas if "@click" in meta and "link" in str(meta["@click"])]


def _strips(app: MtaApp) -> list[list[dict[str, Any]]]:
    """What each drawn piece of every line carries beside its letters."""
    lines = app.screen._compositor.render_strips()
    return [[segment.style.meta for segment in strip if segment.style is not None] for strip in lines]


async def test_a_long_answer_in_many_pieces_is_whole_at_the_end(
    demo_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [f"word{n} " if n % 10 else f"word{n}\n\n" for n in range(300)]

    def many(self: ChatModel, ids: list[int], spoken: Generation, column: str = "") -> Iterator[Event]:
        for piece in pieces:
            spoken.text, spoken.tokens = spoken.text + piece, spoken.tokens + 1
            yield TextChunk(piece, column)
        spoken.finish_reason = "end"

    monkeypatch.setattr(ChatModel, "stream_answer", many)

    async with open_app(demo_store) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await type_and_ask(app, pilot, "go")
        reply = app.screen.query_one(AnswerMarkdown)
        assert reply.answer_text == reply.source == "".join(pieces)
        assert "word299" in screen_text(app) and "300 tokens" in screen_text(app)
        assert app.screen.query_one("#chats", OptionList).option_count == 1
        assert not turn(app).in_progress and app.screen.query_one("#search", Input).value == ""


async def test_w_shows_why_the_last_answer_is_as_it_is(demo_store: Path) -> None:
    async with open_app(demo_store, size=(120, 50)) as (app, pilot):
        await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "w")
        assert "no answer to explain yet" in screen_text(app)
        await type_and_ask(app, pilot, "film 3 about a ship")
        (answer,) = replies(app)
        await press_and_hear(app, pilot, "escape", "w")
        pane, shown = app.screen.query_one(ReasonsPane), screen_text(app)
        assert app.focused is pane and f"Why {answer}" in shown
        assert f"▸ {answer}" in shown and "→ with label memory" in shown and "3 own" in shown
        assert "The 5 nearest of 90 neighbours" in shown and "film 3 about a ship → " in shown
        assert "3 history items in the prompt" in pane.plain_text
        assert pane.plain_text.endswith("the likeliest label, without sampling")
        await pilot.press("y", "z")
        await pilot.pause()
        assert "nearest of 90 neighbours" in app.clipboard and app.screen.maximized is pane
        await pilot.press("w")
        await pilot.pause()
        assert not pane.is_open and app.screen.maximized is None
        assert "neighbours" not in screen_text(app) and "film 3 about a ship" in screen_text(app)
        await press_and_hear(app, pilot, "w")
        await pilot.press("escape")
        assert not pane.is_open


async def test_an_open_why_follows_the_next_answer_also_after_another_user_had_the_model(demo_store: Path) -> None:
    async with open_app(demo_store, size=(120, 50)) as (app, pilot):
        screen = await enter(app, pilot, "chat", "ida")
        await pilot.press("escape", "t")
        await type_and_ask(app, pilot, "one?")
        await press_and_hear(app, pilot, "escape", "w")
        pane = screen.query_one(ReasonsPane)
        before = pane.border_title
        await type_and_ask(app, pilot, "two?")
        await answered(app, pilot)
        assert isinstance(app.focused, PromptArea), "the focus stays where one types"
        assert pane.is_open and pane.border_title != before
        await pilot.press("escape", "escape")
        assert not pane.is_open
        session, ends = screen._session, list[object]()

        def take(context: WorkerContext) -> Iterator[Event]:
            context.chat_model_for(context.reg.users.get("jon"), session._answered_with[1])
            yield from ()

        app.model_worker.submit_request(take, ends.append, ends.append)
        await until(pilot, lambda: bool(ends))
        assert ends == [None] and session._conversation.model.user.name == "jon"
        await press_and_hear(app, pilot, "w")
        assert "adapted · task lamp-2" in pane.plain_text and session._conversation.model.user.name == "ida"
        await pilot.press("n")
        await settled(app, pilot)
        assert not pane.is_open, "a new conversation has no answer yet"


def test_torch_is_not_imported_before_the_first_question() -> None:
    import subprocess
    import sys

    code = (
        "import sys; import mta_cli.tui.screens.chat, mta_cli.tui.screens.compare; "
        "print([m for m in ('torch', 'transformers', 'numpy', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
