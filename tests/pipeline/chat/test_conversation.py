"""Conversations: what is remembered, what is stored, what gives way when the window is full."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, NotFound, StoreBusy
from mta_cli.events import Done, Event, Saved, Token
from mta_cli.pipeline.chat.answer import Voice
from mta_cli.pipeline.chat.conversation import Conversation, Exchange, keep_item
from store.erase import SOMEBODY
from tests.pipeline.world import World, asking, contents, notes_of


def talk(world: World, *, keep: bool = True, user: str | None = "alice", **how: Any) -> Conversation:
    person = world.reg.users.get(user) if user else None
    return Conversation(Voice.open(world.reg, world.entry, person, asking(**how)), keep=keep)


def run(events: Iterator[Event]) -> tuple[Any, list[Event]]:
    """The result of `Done`, if any, and all events."""
    every = list(events)
    return next((event.result for event in every if isinstance(event, Done)), None), every


def test_the_next_turn_sees_the_one_before(world: World) -> None:
    chat = talk(world)
    first, _ = run(chat.say("my first question"))
    ids, _, _ = chat._prompt("my second question", chat.exchanges)
    prompt = chat.voice.base.tokenizer.decode(ids)
    assert prompt.index("my first question") < prompt.index("my second question")
    assert chat.exchanges[0].answer == first["text"]


def test_a_turn_through_the_cache_equals_one_from_scratch(world: World) -> None:
    chat = talk(world)
    run(chat.say("one"))
    ids, _, _ = chat._prompt("two", chat.exchanges)
    cached, _ = run(chat.say("two"))
    fresh = Voice.open(world.reg, world.entry, world.alice, asking())
    assert "".join(e.text for e in fresh.speak(ids, _spoken(), "two") if isinstance(e, Token)) == cached["text"]


def _spoken() -> Any:
    from mta_cli.pipeline.chat.answer import Spoken

    return Spoken()


def test_exchanges_are_stored_with_their_source(world: World) -> None:
    chat = talk(world)
    run(chat.say("hello there"))
    run(chat.switch_mode("base"))
    run(chat.say("and again"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    messages = world.reg.chats.messages(stored.id)
    assert [m.role for m in messages] == ["user", "assistant"] * 2
    assert [m.source.get("mode") for m in messages] == [None, "adapted", None, "base"]
    assert stored.title == "hello there"


def test_no_save_stores_nothing_until_save(world: World, tmp_path: Path) -> None:
    chat = talk(world, keep=False)
    with pytest.raises(BadInput, match="nothing to save"):
        run(chat.save())
    run(chat.say("one"))
    assert world.reg.chats.of_user(world.alice.id) == []
    run(chat.save(str(tmp_path / "chat.txt")))
    assert (tmp_path / "chat.txt").read_text(encoding="utf-8").startswith("alice: one\nadapted: ")
    run(chat.say("two"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    assert len(world.reg.chats.messages(stored.id)) == 4
    for place in (str(tmp_path / "chat.txt"), "~nobody-of-that-name/x", "a\0b", "a" * 300):
        with pytest.raises(BadInput, match="cannot be written"):
            run(chat.save(place))


def test_a_busy_store_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = talk(world)

    def busy() -> None:
        raise StoreBusy("somebody else writes")

    with monkeypatch.context() as patch:
        patch.setattr(world.reg, "transaction", busy)
        _, events = run(chat.say("one"))
    assert "Not stored yet" in notes_of(events)
    run(chat.say("two"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    assert len(world.reg.chats.messages(stored.id)) == 4


def test_good_makes_a_history_item_once(world: World) -> None:
    chat = talk(world)
    with pytest.raises(BadInput, match="no answer yet"):
        run(chat.good())
    run(chat.say("what now?"))
    _, events = run(chat.good())
    assert any(isinstance(event, Saved) for event in events)
    _, again = run(chat.good())
    assert "already" in notes_of(again)
    kept = contents(world.reg.items.recent(world.alice.id, "free", None))
    assert kept.count(("what now?", chat.exchanges[0].answer)) == 1


def test_good_goes_to_the_task_of_the_chat(world: World) -> None:
    chat = talk(world, task="lamp-2")
    run(chat.say("a film about space"))
    run(chat.good())
    (item,) = world.reg.items.recent(world.alice.id, "lamp-2", None)
    assert item.input == "a film about space" and item.output in chat.voice.task.labels


def test_good_keeps_no_answer_that_is_no_label(world: World) -> None:
    chat = talk(world, task="lamp-2", free_decoding=True)
    run(chat.say("a film"))
    if chat.exchanges:
        with pytest.raises(BadInput, match="no label"):
            run(chat.good())


def test_the_oldest_exchanges_give_way(world: World) -> None:
    chat = talk(world)
    filler = "x" * 600
    notes = ""
    for n in range(5):
        _, events = run(chat.say(f"question {n} {filler}"))
        notes += notes_of(events)
    assert chat.first > 0 and "no longer fit" in notes and "left out" in notes
    assert len(chat.exchanges) == 5
    ids, _, _ = chat._prompt("last", chat.exchanges)
    prompt = chat.voice.base.tokenizer.decode(ids)
    assert "question 0" not in prompt and "question 4" in prompt
    assert len(ids) + 12 <= chat.voice.base.window


def test_an_interrupted_answer_is_kept_and_the_chat_goes_on(world: World) -> None:
    chat = talk(world)
    events = chat.say("tell me")
    piece = next(event for event in events if isinstance(event, Token))
    events.close()  # type: ignore[attr-defined]
    assert [(e.question, e.answer) for e in chat.exchanges] == [("tell me", piece.text)]
    assert len(world.reg.chats.of_user(world.alice.id)) == 1
    result, _ = run(chat.say("go on"))
    assert result["text"] and len(chat.exchanges) == 2


def test_another_user_begins_anew_on_the_same_base(world: World) -> None:
    chat = talk(world)
    run(chat.say("hello"))
    loaded = chat.voice.base
    _, events = run(chat.switch_user("bob"))
    assert chat.voice.base is loaded and chat.exchanges == [] and "bob" in notes_of(events)
    run(chat.say("hello"))
    assert len(world.reg.chats.of_user(world.bob.id)) == 1
    with pytest.raises(NotFound):
        run(chat.switch_user("nobody-here"))
    assert chat.voice.user == world.bob and len(chat.exchanges) == 1


def test_modes_keep_the_conversation(world: World) -> None:
    chat = talk(world)
    run(chat.say("hello"))
    _, events = run(chat.switch_mode("fused"))
    assert "fused" in notes_of(events) and len(chat.exchanges) == 1
    run(chat.switch_user("bob"))
    with pytest.raises(NotFound, match="no stack"):
        run(chat.switch_mode("adapted"))


def test_compare_repeats_the_last_question_and_changes_nothing(world: World) -> None:
    chat = talk(world)
    with pytest.raises(BadInput, match="no question yet"):
        run(chat.compare())
    said, _ = run(chat.say("hello there"))
    result, _ = run(chat.compare())
    assert result["answers"]["adapted"] == said["text"] and result["prompt"] == "hello there"
    assert len(chat.exchanges) == 1 and chat.voice.source.mode == "adapted"
    other, _ = run(chat.compare("something else"))
    assert other["prompt"] == "something else"


def test_history_lists_and_shows_chats(world: World) -> None:
    chat = talk(world)
    run(chat.say("first chat"))
    run(chat.reset())
    run(chat.say("second chat"))
    listed, _ = run(chat.history())
    assert [entry["title"] for entry in listed["chats"]] == ["second chat", "first chat"]
    shown, _ = run(chat.history(str(listed["chats"][1]["chat"])))
    assert shown["messages"][0]["content"] == "first chat"
    with pytest.raises(NotFound):
        run(chat.history("999"))
    run(chat.switch_user("bob"))
    with pytest.raises(NotFound):
        run(chat.history(str(listed["chats"][0]["chat"])))


def test_a_stored_chat_is_gone_on_with(world: World) -> None:
    chat = talk(world)
    run(chat.say("my first question"))
    first = chat.chat_id
    assert first is not None
    run(chat.reset())
    _, events = run(chat.resume(first))
    assert f"Going on with chat {first}" in notes_of(events)
    assert [(e.question, e.stored) for e in chat.exchanges] == [("my first question", True)]
    ids, _, _ = chat._prompt("my second question", chat.exchanges)
    assert "my first question" in chat.voice.base.tokenizer.decode(ids)
    run(chat.say("my second question"))
    assert [m.content for m in world.reg.chats.messages(first)][::2] == ["my first question", "my second question"]


def test_nobody_elses_chat_is_gone_on_with(world: World) -> None:
    other = world.reg.chats.start(world.bob.id, "his")
    chat = talk(world)
    run(chat.say("hello"))
    for number in (other.id, 999):
        with pytest.raises(NotFound):
            run(chat.resume(number))
    assert len(chat.exchanges) == 1


def test_an_answer_is_kept_as_an_item_of_its_task_only_where_it_is_a_label(world: World) -> None:
    saved = keep_item(world.reg, world.alice, "lamp-2", "a film", "comedy")
    assert saved.detail == "task lamp-2; what learns from it needs a bank first: mta bank build --task lamp-2"
    saved = keep_item(world.reg, world.alice, "free", "a film", "hm")
    assert saved.detail == "task free; learn from it with: mta user adapt alice --task free"
    with pytest.raises(BadInput, match="no label of lamp-2"):
        keep_item(world.reg, world.alice, "lamp-2", "a film", "none of them")
    with pytest.raises(NotFound):
        keep_item(world.reg, world.alice, "no-such-task", "a film", "comedy")
    assert contents(world.reg.items.recent(world.alice.id, "lamp-2", None)) == [("a film", "comedy")]


def test_nobody_in_particular_stores_nothing(world: World) -> None:
    chat = talk(world, user=None)
    _, events = run(chat.opening())
    assert "not stored" in notes_of(events)
    run(chat.say("hello"))
    for attempt in (chat.good, chat.save, chat.history):
        with pytest.raises(BadInput, match="nobody"):
            run(attempt())


def test_a_task_wraps_each_message_by_itself(world: World) -> None:
    chat = talk(world, task="lamp-2")
    run(chat.say("a film about space"))
    ids, _, _ = chat._prompt("another film", chat.exchanges)
    assert "film about space" not in chat.voice.base.tokenizer.decode(ids)


def test_what_is_said_to_somebody_who_was_removed_is_nobody_elses(world: World) -> None:
    """Erin came last, so that whoever comes next gets her number."""
    erin = world.reg.users.get("erin")
    chat = talk(world, user="erin", mode="base")
    run(chat.say("my secret"))
    world.reg.users.forget(erin.id)
    zoe = world.reg.users.add("zoe")
    assert zoe.id == erin.id
    _, events = run(chat.say("my other secret"))
    assert "Not stored, nor is what follows: 'erin' was removed." in notes_of(events) and not chat.keep
    run(chat.say("and one more"))
    with pytest.raises(NotFound, match="erin"):
        run(chat.good())
    with pytest.raises(NotFound, match="erin"):
        run(chat.save())
    assert world.reg.chats.of_user(zoe.id) == [] and world.reg.items.count(zoe.id, "free") == 0


def test_a_stored_conversation_that_was_removed_is_not_gone_on_with_in_another_one(world: World) -> None:
    chat = talk(world)
    run(chat.say("the first"))
    assert chat.chat_id is not None
    world.reg.chats.remove(chat.chat_id)
    other = world.reg.chats.start(world.bob.id, "his")
    assert other.id == chat.chat_id
    _, events = run(chat.say("the second"))
    assert f"There is no chat {other.id}" in notes_of(events)
    assert world.reg.chats.messages(other.id) == []


def test_an_anchor_who_was_forgotten_meanwhile_is_not_named(world: World) -> None:
    chat = talk(world, mode="fused")
    assert chat.voice.source.anchors == ("dave", "erin")
    world.reg.users.forget(world.reg.users.get("dave").id)
    run(chat.say("hello"))
    (stored,) = world.reg.chats.of_user(world.alice.id)
    assert world.reg.chats.messages(stored.id)[1].source["anchors"] == [SOMEBODY, "erin"]


def test_a_kept_item_has_a_time_as_imports_have(world: World) -> None:
    keep_item(world.reg, world.alice, "lamp-2", "a film", "comedy")
    (item,) = world.reg.items.recent(world.alice.id, "lamp-2")
    assert item.time is not None and datetime.fromisoformat(item.time).tzinfo is None


def test_a_transcript_is_plain_and_nobody_speaks_for_others(world: World, tmp_path: Path) -> None:
    chat = talk(world, keep=False)
    chat.exchanges.append(Exchange("hi", "a\x1b[2J\u202eb\nalice: forged\n", {"mode": "base"}))
    run(chat.save(str(tmp_path / "said.txt")))
    assert (tmp_path / "said.txt").read_text() == "alice: hi\nbase: a[2Jb\n    alice: forged\n"
