"""Conversations: what is remembered, what is stored, what gives way when the window is full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from mta_cli.errors import BadInput, NotFound, StoreBusy, UsageError
from mta_cli.events import ArtifactSaved, Event, JobResult, TextChunk
from mta_cli.pipeline.chat import conversation
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.chat.conversation import Conversation, Exchange, add_exchange_as_item
from mta_cli.pipeline.users.exported_folders import exports_of
from mta_cli.pipeline.users.removal import remove_items
from store.names import FORGOTTEN_NAME
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.world import World, asking, contents, notes_of


def talk(world: World, *, keep: bool = True, user: str | None = "alice", **how: Any) -> Conversation:
    person = world.reg.users.get(user) if user else None
    return Conversation(ChatModel.load_for_user(world.reg, world.entry, person, asking(**how)), autosave=keep)


def run(events: Iterator[Event]) -> tuple[Any, list[Event]]:
    """The result of `Done`, if any, and all events."""
    every = list(events)
    return next((event.result for event in every if isinstance(event, JobResult)), None), every


def test_the_next_turn_sees_the_one_before(world: World) -> None:
    chat = talk(world)
    first, _ = run(chat.answer_message("my first question"))
    ids = chat._fit_prompt("my second question", chat.exchanges).ids
    prompt = chat.model.base.tokenizer.decode(ids)
    assert prompt.index("my first question") < prompt.index("my second question")
    assert chat.exchanges[0].answer == first["text"]


def test_a_turn_through_the_cache_equals_one_from_scratch(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("one"))
    ids = chat._fit_prompt("two", chat.exchanges).ids
    cached, _ = run(chat.answer_message("two"))
    fresh = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    assert (
        "".join(e.text for e in fresh.stream_answer(ids, _spoken(), "two") if isinstance(e, TextChunk))
        == cached["text"]
    )


def _spoken() -> Any:
    from mta_cli.pipeline.chat.answer import Generation

    return Generation()


def test_exchanges_are_stored_with_their_source(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("hello there"))
    run(chat.switch_mode("base"))
    run(chat.answer_message("and again"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    messages = world.reg.chats.messages(stored.id)
    assert [m.role for m in messages] == ["user", "assistant"] * 2
    assert [m.source.get("mode") for m in messages] == [None, "adapted", None, "base"]
    assert stored.title == "hello there"


def test_no_save_stores_nothing_until_save(world: World, tmp_path: Path) -> None:
    chat = talk(world, keep=False)
    with pytest.raises(BadInput, match="nothing to save"):
        run(chat.save())
    run(chat.answer_message("one"))
    assert world.reg.chats.of_user(world.alice.id) == []
    run(chat.save(str(tmp_path / "chat.txt")))
    assert (tmp_path / "chat.txt").read_text(encoding="utf-8").startswith("alice: one\nadapted: ")
    assert (tmp_path / "chat.txt").stat().st_mode & 0o777 == 0o600
    run(chat.answer_message("two"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    assert len(world.reg.chats.messages(stored.id)) == 4
    for place in (str(tmp_path / "chat.txt"), "~nobody-of-that-name/x", "a\0b", "a" * 300):
        with pytest.raises(BadInput, match="cannot be written"):
            run(chat.save(place))
    assert exports_of(world.reg, world.alice) == [str(tmp_path / "chat.txt")], "a removal names it"


def test_a_busy_store_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(world)

    def busy() -> None:
        raise StoreBusy("somebody else writes")

    with monkeypatch.context() as patch:
        patch.setattr(world.reg, "transaction", busy)
        _, events = run(chat.answer_message("one"))
    assert "not stored yet" in notes_of(events)
    run(chat.answer_message("two"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    assert len(world.reg.chats.messages(stored.id)) == 4


def test_good_makes_a_history_item_once(world: World) -> None:
    chat = talk(world)
    with pytest.raises(BadInput, match="no answer yet"):
        run(chat.accept_exchange())
    run(chat.answer_message("what now?"))
    _, events = run(chat.accept_exchange())
    assert any(isinstance(event, ArtifactSaved) for event in events)
    _, again = run(chat.accept_exchange())
    assert "already" in notes_of(again)
    kept = contents(world.reg.items.recent_items(world.alice.id, "free", None))
    assert kept.count(("what now?", chat.exchanges[0].answer)) == 1


def test_no_way_of_a_conversation_stores_a_nul_character(world: World) -> None:
    """Imports refuse it by the same function."""
    chat = talk(world)
    with pytest.raises(BadInput, match="NUL"):
        run(chat.answer_message("what\0now?"))
    run(chat.answer_message("what now?"))
    chat.exchanges[0].answer += "\0"
    with pytest.raises(BadInput, match="The answer contains a NUL character"):
        run(chat.accept_exchange())
    with pytest.raises(BadInput, match="NUL"):
        add_exchange_as_item(world.reg, world.alice, "free", "a\0b", "c")


def test_good_goes_to_the_task_of_the_chat(world: World) -> None:
    chat = talk(world, task="lamp-2")
    run(chat.answer_message("a film about space"))
    run(chat.accept_exchange())
    (item,) = world.reg.items.recent_items(world.alice.id, "lamp-2", None)
    assert item.input == "a film about space" and item.output in chat.model.task.labels


def test_good_keeps_no_answer_that_is_no_label(world: World) -> None:
    chat = talk(world, task="lamp-2", free_decoding=True)
    run(chat.answer_message("a film"))
    if chat.exchanges:
        with pytest.raises(BadInput, match="not a label"):
            run(chat.accept_exchange())


def test_the_oldest_exchanges_give_way(world: World) -> None:
    chat = talk(world)
    filler = "x" * 600
    notes = ""
    for n in range(5):
        _, events = run(chat.answer_message(f"question {n} {filler}"))
        notes += notes_of(events)
    assert chat.first_in_window > 0 and "no longer fit" in notes and "left out" in notes
    assert len(chat.exchanges) == 5
    ids = chat._fit_prompt("last", chat.exchanges).ids
    prompt = chat.model.base.tokenizer.decode(ids)
    assert "question 0" not in prompt and "question 4" in prompt
    assert len(ids) + 12 <= chat.model.base.window


def test_items_that_another_process_removed_leave_the_prompt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an open conversation, at once."""
    shown, fit = [], ChatModel.fit_prompt

    def watch(self: ChatModel, messages: Any) -> Any:
        prompt = fit(self, messages)
        shown.append([item.input for item in prompt.shown])
        return prompt

    monkeypatch.setattr(ChatModel, "fit_prompt", watch)
    chat = talk(world)
    run(chat.answer_message("about alice number 2"))
    run(chat.answer_message("something else"))
    assert shown[0] == shown[1] and shown[0]
    gone = shown[0][0]
    with Registry.open(world.reg.root) as other:
        keys = {item.input: item.key for item in other.items.recent_items(world.alice.id, chat.model.task.name)}
        list(remove_items(other, "alice", [keys[gone]], task=chat.model.task.name))
    run(chat.answer_message("and now?"))
    assert gone not in shown[2] and set(shown[0][1:]) <= set(shown[2])


def test_each_message_brings_its_nearest_items_and_what_was_said_stays_as_it_was(world: World) -> None:
    world.reg.items.append_items(world.alice.id, [NewItem("k", world.task, "where is the key", "under the mat")])
    chat = talk(world, history_items=1)
    run(chat.answer_message("about alice number 2"))
    first = chat._fit_prompt("hello", [])
    second = chat._fit_prompt("and where is the key?", chat.exchanges)
    third = chat._fit_prompt("where is that key, again?", chat.exchanges)
    assert [item.output for item in second.shown] == ["under the mat", "alice 2!"] and len(first.shown) == 1
    assert third.shown == second.shown, "an item is shown once"
    before = chat._fit_prompt("xyzzy", chat.exchanges)
    assert [item.output for item in before.shown] == ["alice 2!"], "a follow-up shows what matches it"
    said = len(chat.model.prompter.chat_ids([{"role": "user", "content": "about alice number 2"}], [before.shown]))
    assert before.ids[: said - 8] == second.ids[: said - 8]


@pytest.mark.parametrize(("mode", "left"), [(None, "fused"), ("adapted", "fused"), ("base", "base")])
def test_a_stack_that_another_process_removed_answers_no_more(world: World, mode: str | None, left: str) -> None:
    """In an open conversation: the most personal model that is left answers, and says so."""
    chat, key = talk(world, mode=mode), (world.alice.id, world.task, 1)
    with Registry.open(world.reg.root) as other:
        other.users.add("frank")  # a change, and none of alice's model
    _, events = run(chat.answer_message("hello"))
    assert "changed" not in notes_of(events) and chat.model.source.mode == (mode or "adapted")
    with Registry.open(world.reg.root) as other:
        other.stacks.remove(*key)
    _, events = run(chat.answer_message("hello"))
    assert f"The model has changed: {left}" in notes_of(events) and chat.model.source.mode == left
    fresh = talk(world, mode=left).model.base.model.parameters()
    assert all(map(torch.equal, chat.model.base.model.parameters(), fresh))


@pytest.mark.parametrize(("mode", "answers"), [(None, "adapted"), ("fused", "fused")])
def test_a_stack_that_another_process_made_answers(world: World, mode: str | None, answers: str) -> None:
    """In an open conversation, unless it was asked for another mode."""
    (stack,) = world.reg.stacks.of_user(world.alice.id)
    bob = replace(stack, user_id=world.bob.id)
    chat = talk(world, user="bob", mode=mode)
    with Registry.open(world.reg.root) as other:
        other.stacks.save_stack(bob)
    run(chat.answer_message("hello"))
    assert chat.model.source.mode == answers


def test_an_interrupted_answer_is_kept_and_the_chat_goes_on(world: World) -> None:
    chat = talk(world)
    events = chat.answer_message("tell me")
    piece = next(event for event in events if isinstance(event, TextChunk))
    events.close()  # type: ignore[attr-defined]
    assert [(e.question, e.answer) for e in chat.exchanges] == [("tell me", piece.text)]
    assert len(world.reg.chats.of_user(world.alice.id)) == 1
    result, _ = run(chat.answer_message("go on"))
    assert result["text"] and len(chat.exchanges) == 2


def test_another_user_begins_anew_on_the_same_base(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("hello"))
    loaded = chat.model.base
    _, events = run(chat.switch_user("bob"))
    assert chat.model.base is loaded and chat.exchanges == [] and "bob" in notes_of(events)
    run(chat.answer_message("hello"))
    assert len(world.reg.chats.of_user(world.bob.id)) == 1
    with pytest.raises(NotFound):
        run(chat.switch_user("nobody-here"))
    assert chat.model.user == world.bob and len(chat.exchanges) == 1


def test_modes_keep_the_conversation(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("hello"))
    _, events = run(chat.switch_mode("fused"))
    assert "fused" in notes_of(events) and len(chat.exchanges) == 1
    run(chat.switch_user("bob"))
    with pytest.raises(NotFound, match="no stack"):
        run(chat.switch_mode("adapted"))


def test_compare_repeats_the_last_question_and_changes_nothing(world: World) -> None:
    chat = talk(world)
    with pytest.raises(BadInput, match="no question to compare"):
        run(chat.compare())
    said, _ = run(chat.answer_message("hello there"))
    result, _ = run(chat.compare())
    assert result["answers"]["adapted"] == said["text"] and result["prompt"] == "hello there"
    assert len(chat.exchanges) == 1 and chat.model.source.mode == "adapted"
    other, _ = run(chat.compare("something else"))
    assert other["prompt"] == "something else"


def test_history_lists_and_shows_chats(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("first chat"))
    run(chat.reset())
    run(chat.answer_message("second chat"))
    listed, _ = run(chat.stored_chats())
    assert [entry["title"] for entry in listed["chats"]] == ["second chat", "first chat"]
    shown, _ = run(chat.stored_chats(str(listed["chats"][1]["chat"])))
    assert shown["messages"][0]["content"] == "first chat"
    with pytest.raises(NotFound):
        run(chat.stored_chats("999"))
    run(chat.switch_user("bob"))
    with pytest.raises(NotFound):
        run(chat.stored_chats(str(listed["chats"][0]["chat"])))


def test_a_transcript_that_cannot_be_written_whole_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        conversation._write_new_file(str(tmp_path / "chat.txt"), "half \ud800")
    assert not (tmp_path / "chat.txt").exists()


def test_a_stored_chat_is_gone_on_with(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("my first question"))
    first = chat.chat_id
    assert first is not None
    run(chat.reset())
    _, events = run(chat.resume(first))
    assert f"Continuing chat {first}" in notes_of(events)
    assert [(e.question, e.stored) for e in chat.exchanges] == [("my first question", True)]
    ids = chat._fit_prompt("my second question", chat.exchanges).ids
    assert "my first question" in chat.model.base.tokenizer.decode(ids)
    run(chat.answer_message("my second question"))
    assert [m.content for m in world.reg.chats.messages(first)][::2] == ["my first question", "my second question"]


def test_nobody_elses_chat_is_gone_on_with(world: World) -> None:
    other = world.reg.chats.start_chat(world.bob.id, "his")
    chat = talk(world)
    run(chat.answer_message("hello"))
    for number in (other.id, 999):
        with pytest.raises(NotFound):
            run(chat.resume(number))
    assert len(chat.exchanges) == 1


def test_an_answer_is_kept_as_an_item_of_its_task_only_where_it_is_a_label(world: World) -> None:
    saved = add_exchange_as_item(world.reg, world.alice, "lamp-2", "a film", "comedy")
    assert saved.detail == "task lamp-2; to train on it, build a bank first: mta bank build --task lamp-2"
    saved = add_exchange_as_item(world.reg, world.alice, "free", "a film", "hm")
    assert saved.detail == "task free; to train on it: mta user adapt alice --task free"
    with pytest.raises(BadInput, match="not a label of lamp-2"):
        add_exchange_as_item(world.reg, world.alice, "lamp-2", "a film", "none of them")
    with pytest.raises(NotFound):
        add_exchange_as_item(world.reg, world.alice, "no-such-task", "a film", "comedy")
    assert contents(world.reg.items.recent_items(world.alice.id, "lamp-2", None)) == [("a film", "comedy")]


def test_nobody_in_particular_stores_nothing(world: World) -> None:
    chat = talk(world, user=None)
    _, events = run(chat.opening_notes())
    assert "not stored" in notes_of(events)
    run(chat.answer_message("hello"))
    for attempt in (chat.accept_exchange, chat.save, chat.stored_chats):
        with pytest.raises(BadInput, match="needs a user"):
            run(attempt())


def test_a_task_wraps_each_message_by_itself(world: World) -> None:
    chat = talk(world, task="lamp-2")
    run(chat.answer_message("a film about space"))
    ids = chat._fit_prompt("another film", chat.exchanges).ids
    assert "film about space" not in chat.model.base.tokenizer.decode(ids)


def test_nobody_speaks_for_a_user_who_was_removed(world: World) -> None:
    erin = world.reg.users.get("erin")
    chat = talk(world, user="erin", mode="base")
    run(chat.answer_message("my secret"))
    world.reg.users.forget(erin.id)
    erin_again = world.reg.users.add("erin")
    with pytest.raises(NotFound, match="The user was removed"):
        run(chat.answer_message("my other secret"))
    for attempt in (chat.accept_exchange, chat.save):
        with pytest.raises(NotFound, match=f"no user number {erin.id}"):
            run(attempt())
    assert (
        world.reg.chats.of_user(erin_again.id) == [] and len(world.reg.items.recent_items(erin_again.id, "free")) == 0
    )


def test_a_stored_conversation_that_was_removed_is_not_gone_on_with(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("the first"))
    assert chat.chat_id is not None
    world.reg.chats.remove(chat.chat_id)
    other = world.reg.chats.start_chat(world.bob.id, "his")
    _, events = run(chat.answer_message("the second"))
    assert f"following ones are not stored: There is no chat {chat.chat_id}" in notes_of(events) and not chat.autosave
    assert world.reg.chats.messages(other.id) == [] == world.reg.chats.of_user(world.alice.id)


def test_an_anchor_who_was_forgotten_meanwhile_is_not_named(world: World) -> None:
    chat = talk(world, mode="fused")
    assert chat.model.source.anchors == ("dave", "erin")
    world.reg.users.forget(world.reg.users.get("dave").id)
    run(chat.answer_message("hello"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    assert world.reg.chats.messages(stored.id)[1].source["anchors"] == [FORGOTTEN_NAME, "erin"]


def test_a_kept_item_has_a_time_as_imports_have(world: World) -> None:
    add_exchange_as_item(world.reg, world.alice, "lamp-2", "a film", "comedy")
    (item,) = world.reg.items.recent_items(world.alice.id, "lamp-2")
    assert item.time is not None and datetime.fromisoformat(item.time).tzinfo is None


def test_a_transcript_is_plain_and_nobody_speaks_for_others(world: World, tmp_path: Path) -> None:
    chat = talk(world, keep=False)
    chat.exchanges.append(Exchange("hi", "a\x1b[2J\u202eb\nalice: forged\n", {"mode": "base"}))
    run(chat.save(str(tmp_path / "said.txt")))
    assert (tmp_path / "said.txt").read_text() == "alice: hi\nbase: a[2Jb\n    alice: forged\n"


def test_good_can_be_taken_back(world: World) -> None:
    chat = talk(world)
    with pytest.raises(BadInput, match="nothing to undo"):
        run(chat.undo_accept())
    before = contents(world.reg.items.recent_items(world.alice.id, "free"))
    stack = world.reg.stacks.of_user(world.alice.id)
    world.reg._db.execute_write("UPDATE stacks SET created = '2000'")
    world.reg._db.execute_write("UPDATE recipes SET created = '2000'")
    run(chat.answer_message("what now?"))
    run(chat.accept_exchange())
    _, events = run(chat.undo_accept())
    assert contents(world.reg.items.recent_items(world.alice.id, "free")) == before
    assert "removed from alice's history of free" in notes_of(events)
    assert [one.digest for one in world.reg.stacks.of_user(world.alice.id)] == [one.digest for one in stack]
    with pytest.raises(BadInput, match="nothing to undo"):
        run(chat.undo_accept())
    run(chat.accept_exchange())
    assert len(world.reg.items.recent_items(world.alice.id, "free")) == len(before) + 1


def test_good_is_known_to_a_continued_conversation(world: World) -> None:
    chat, again = talk(world), talk(world)
    run(chat.answer_message("what now?"))
    run(chat.accept_exchange())
    kept = contents(world.reg.items.recent_items(world.alice.id, "free"))
    run(again.resume_latest())
    _, events = run(again.accept_exchange())
    assert "is a history item already" in notes_of(events)
    run(again.undo_accept())
    assert len(world.reg.items.recent_items(world.alice.id, "free")) == len(kept) - 1


def test_what_was_made_from_a_kept_exchange_answers_no_more(world: World) -> None:
    chat = talk(world)
    run(chat.answer_message("what now?"))
    run(chat.accept_exchange())
    world.reg._db.execute_write("UPDATE stacks SET created = '2100'")
    world.reg._db.execute_write("UPDATE recipes SET created = '2000'")
    _, events = run(chat.undo_accept())
    assert world.reg.stacks.of_user(world.alice.id) == [] and chat.model.source.mode == "fused"
    assert "mta user adapt alice --task free" in notes_of(events)
    run(chat.answer_message("and now?"))


def test_good_refuses_what_is_no_example(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(world)
    run(chat.answer_message("a good question"))
    events = chat.answer_message("tell me")
    next(event for event in events if isinstance(event, TextChunk))
    events.close()  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="was stopped"):
        run(chat.accept_exchange())
    again = talk(world)
    run(again.resume_latest())
    with pytest.raises(BadInput, match="was stopped"):
        run(again.accept_exchange())

    def speak(words: str, ended: str) -> None:
        def answer(self: ChatModel, ids: list[int], spoken: Any, question: str) -> Iterator[Event]:
            spoken.text, spoken.finish_reason = words, ended
            yield TextChunk(words)

        monkeypatch.setattr(ChatModel, "stream_answer", answer)

    kept = world.reg.items.recent_items(world.alice.id, "free")
    run(chat.answer_message("a whole answer"))
    speak("", "interrupted")
    run(chat.answer_message("stopped before the first word"))
    assert chat.exchanges[-1].question == chat.explain_last()["question"] == "a whole answer"
    run(chat.accept_exchange())
    assert len(world.reg.items.recent_items(world.alice.id, "free")) == len(kept) + 1
    for words, ended, said in (
        ("", "end", "was empty"),
        (" \n", "end", "was empty"),
        ("so so", "repetition", "repeat"),
    ):
        speak(words, ended)
        run(chat.answer_message("and now?"))
        with pytest.raises(BadInput, match=said):
            run(chat.accept_exchange())
    speak("cut at", "length")
    run(chat.answer_message("and now?"))
    run(chat.accept_exchange())
    assert len(world.reg.items.recent_items(world.alice.id, "free")) == len(kept) + 2


def test_a_system_message_is_in_front_of_what_follows(world: World) -> None:
    chat = talk(world, system="Talk like a sailor.")
    run(chat.answer_message("hello"))
    decode = chat.model.base.tokenizer.decode
    prompt = decode(chat._fit_prompt("and now?", chat.exchanges).ids)
    assert prompt.count("Talk like a sailor.") == 1 and prompt.index("sailor") < prompt.index("hello")
    run(chat.set_system("Talk like a judge."))
    prompt = decode(chat._fit_prompt("and now?", chat.exchanges).ids)
    assert "judge" in prompt and "sailor" not in prompt
    run(chat.set_system())
    assert "judge" not in decode(chat._fit_prompt("and now?", chat.exchanges).ids)
    with pytest.raises(UsageError, match="its own prompt"):
        run(talk(world, task="lamp-2").set_system("Be brief."))


def test_the_newest_stored_chat_is_gone_on_with(world: World) -> None:
    with pytest.raises(NotFound, match="no stored conversation"):
        run(talk(world).resume_latest())
    for words in ("older", "newer"):
        run(talk(world).answer_message(words))
    chat = talk(world)
    run(chat.resume_latest())
    assert [exchange.question for exchange in chat.exchanges] == ["newer"]
