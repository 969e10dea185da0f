"""Asking and comparing: whose weights answer, what the prompt holds, what is said about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mta_cli.engine.scoring.log_likelihood import label_scores
from mta_cli.engine.text.tasks import BUILTIN_TASKS, MOVIE_TAGS
from mta_cli.errors import BadInput, NotFound, UsageError
from mta_cli.options import AnswerOptions
from mta_cli.pipeline.chat.answer import (
    CHAT_TOKENS,
    ChatModel,
    Generation,
    answer_question,
    answer_token_limit,
)
from mta_cli.pipeline.chat.conversation import Conversation
from mta_cli.pipeline.chat.fit_prompt import MAX_MESSAGE_CHARS, PromptTooLong, check_message
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.user_weights import default_task, tasks_with_model
from mta_cli.pipeline.users.removal import remove_user
from store.records import NewItem, Recipe
from store.registry import Registry
from tests.pipeline.town import built, finish, fuse_request
from tests.pipeline.world import World, asking, make_world, notes_of, result_of, text_of


def test_ask_says_who_answered(world: World) -> None:
    result, events = result_of(answer_question(world.reg, world.entry, "alice", "hello there", asking()))
    assert result["user"] == "alice" and result["text"] == text_of(events) and result["text"]
    assert result["tokens"] > 0 and result["seconds"] >= 0
    assert result["source"] == {"mode": "adapted", "bank": "tests", "version": 1, "anchors": ["dave", "erin"]}
    assert "adapted · task free · bank tests v1 · anchors dave, erin" in notes_of(events)


def test_the_most_personal_weights_answer(world: World) -> None:
    modes = {}
    for name in ("alice", "bob", "carol"):
        result, events = result_of(answer_question(world.reg, world.entry, name, "hello", asking()))
        modes[name] = result["source"]["mode"]
        assert ("mta user fuse" in notes_of(events)) is (name == "carol")
        assert ("mta user adapt" in notes_of(events)) is (name == "bob")
    assert modes == {"alice": "adapted", "bob": "fused", "carol": "common"}


def test_without_a_user_the_base_answers(world: World) -> None:
    result, _ = result_of(answer_question(world.reg, world.entry, None, "hello", asking()))
    assert result["user"] is None and result["source"]["mode"] == "base"


def test_a_mode_that_is_not_there_is_refused_before_loading(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.engine.model.load.load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(NotFound, match="no stack"):
        list(answer_question(world.reg, world.entry, "bob", "hello", asking(mode="adapted")))
    with pytest.raises(NotFound, match="no fusion"):
        list(answer_question(world.reg, world.entry, "carol", "hello", asking(mode="fused")))
    with pytest.raises(UsageError, match="mode 'best'"):
        list(answer_question(world.reg, world.entry, "alice", "hello", asking(mode="best")))
    with pytest.raises(BadInput, match="Without a user"):
        list(answer_question(world.reg, world.entry, None, "hello", asking(mode="fused")))
    with pytest.raises(NotFound, match="alise"):
        list(answer_question(world.reg, world.entry, "alise", "hello", asking()))
    with pytest.raises(NotFound, match="lamp-99"):
        list(answer_question(world.reg, world.entry, "alice", "hello", asking(task="lamp-99")))
    with pytest.raises(UsageError, match="free-decoding"):
        list(answer_question(world.reg, world.entry, "alice", "hello", asking(free_decoding=True)))


@pytest.mark.parametrize("text", ["", " \n ", "x" * (MAX_MESSAGE_CHARS + 1), "broken \udc80"])
def test_messages_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        check_message(text)


def test_history_stands_in_the_prompt_unless_told_not_to(world: World) -> None:
    with_items = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    message = [{"role": "user", "content": "about alice number 2"}]
    shown = with_items.fit_prompt(message).ids
    assert "alice 2!" in with_items.base.tokenizer.decode(shown)
    bare = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking(history_items=0))
    ids = bare.fit_prompt(message).ids
    assert "alice 2!" not in bare.base.tokenizer.decode(ids)
    assert "about alice number 2" in bare.base.tokenizer.decode(ids)


def test_switching_refolds_without_loading_and_comes_back_exactly(world: World) -> None:
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    before = {key: weight.clone() for key, weight in voice.base.model.state_dict().items()}
    voice.set_user(world.bob, "base")
    base = {key: weight.clone() for key, weight in voice.base.model.state_dict().items()}
    voice.set_user(world.alice, "adapted")
    assert all(bool((voice.base.model.state_dict()[key] == weight).all()) for key, weight in before.items())
    assert any(bool((base[key] != weight).any()) for key, weight in before.items())
    with pytest.raises(NotFound):
        voice.set_user(world.bob, "adapted")
    assert voice.user == world.alice and voice.source.mode == "adapted"


def test_labels_are_chosen_by_likelihood(labelled: World) -> None:
    result, events = result_of(
        answer_question(labelled.reg, labelled.entry, "alice", "a film about space", asking(task="lamp-2"))
    )
    voice = ChatModel.load_for_user(labelled.reg, labelled.entry, labelled.alice, asking(task="lamp-2"))
    assert result["text"] == text_of(events) and result["text"] in voice.task.labels
    assert result["ended"] == "label" and set(result["labels"]) == set(voice.task.labels)
    ids = voice.fit_prompt([{"role": "user", "content": "a film about space"}]).ids
    scores = label_scores(voice.base, ids, [voice.prompter.answer_ids(label) for label in voice.task.labels])
    assert result["labels"][result["text"]] == pytest.approx(max(scores), abs=1e-4)


def test_a_loaded_model_uses_the_label_memory_as_it_is_now(peopled: Registry) -> None:
    """A bank that was built meanwhile counts, and a removed user's items do not vote any more."""

    def neighbours_of(model: ChatModel) -> set[str]:
        votes = model.memory.votes_on(ida, "film 7 about a ship", model.options.memory, 100)
        return set() if votes is None else {vote.user for vote in votes.strongest}

    ida = peopled.users.get("ida")
    model = ChatModel.load_for_user(peopled, resolve_model("tiny", "base"), ida, asking(task="lamp-2"))
    assert model.memory.prior_for(ida, "fused", model.options.memory) is None and neighbours_of(model) == set()
    built(peopled)
    finish(fuse_user(peopled, ida, fuse_request()))
    model.set_user(ida, None)
    assert model.memory.prior_for(ida, model.source.mode, model.options.memory) is not None
    before, kept = neighbours_of(model), model.memory
    assert "user0" in before and model.memory is kept, "it is read once"
    finish(remove_user(peopled, "user0"))
    assert neighbours_of(model) == before - {"user0"}


def test_free_decoding_uses_its_own_words(labelled: World) -> None:
    result, _ = result_of(
        answer_question(labelled.reg, labelled.entry, "alice", "a film", asking(task="lamp-2", free_decoding=True))
    )
    assert "labels" not in result and result["ended"] in ("end", "length")


def test_words_as_typed_still_use_the_personal_weights(labelled: World) -> None:
    assert default_task(labelled.reg, labelled.alice, None, labelled.entry.fingerprint) == "lamp-2"
    assert default_task(labelled.reg, labelled.carol, None, labelled.entry.fingerprint) == "free"
    assert default_task(labelled.reg, labelled.alice, None, "sha256:another base") == "lamp-2"
    result, _ = result_of(answer_question(labelled.reg, labelled.entry, "alice", "hello", asking()))
    assert result["source"]["mode"] == "adapted" and result["ended"] != "label"


def test_a_user_with_several_tasks_speaks_as_in_the_texts_that_are_nearest(labelled: World) -> None:
    reg, alice, base = labelled.reg, labelled.alice, labelled.entry.fingerprint
    for name, words in (("lamp-4", "the meeting on monday"), ("lamp-5", "milk and bread")):
        reg.items.append_items(alice.id, [NewItem("1", name, words, "yes")])
        bank = reg.banks.get_or_create_bank(name=name, key=name, task=name, base=base, embedder="e", seed=0, config={})
        reg.banks.mark_bank_ready(bank.id, 1, 1.0)
        reg.recipes.save_recipe(Recipe(alice.id, name, bank.id, "uniform", (), 1))
    assert set(tasks_with_model(reg, alice, base)) == {"lamp-4", "lamp-5", "lamp-2"}
    for about, used in (("when is the meeting?", "lamp-4"), ("no bread at all", "lamp-5")):
        assert default_task(reg, alice, None, base, about) == used
        assert default_task(reg, alice, "lamp-2", base, about) == "lamp-2"
    assert default_task(reg, alice, None, base, "xyzzy") == default_task(reg, alice, None, base) != "lamp-2"
    talk = Conversation(ChatModel.load_for_user(reg, labelled.entry, alice, asking()), autosave=False)
    assert "models for the tasks lamp-2, lamp-4, lamp-5" in notes_of(list(talk.opening_notes()))
    for text, used in (("the meeting on monday?", "lamp-4"), ("and milk and bread?", "lamp-4")):
        list(talk.answer_message(text))
        assert talk.model.task.name == used, "a conversation stays with the task that it began with"
        assert talk.explain_last()["chosen_among"] == ["lamp-4", "lamp-5"]
    list(talk.reset())
    list(talk.answer_message("milk and bread?"))
    assert talk.model.task.name == "lamp-5"
    list(talk.switch_task("lamp-2"))
    list(talk.answer_message("a film about space"))
    assert talk.exchanges[-1].answer in MOVIE_TAGS and talk.explain_last()["chosen_among"] == []


def test_a_turn_of_a_conversation_is_asked_as_the_task_asks(store_root: Path) -> None:
    voiced = make_world(store_root, task="lamp-4")
    model = ChatModel.load_for_user(voiced.reg, voiced.entry, voiced.alice, asking(history_items=0))
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]
    prompt = model.base.tokenizer.decode(model.fit_prompt([*turns, {"role": "user", "content": "two"}]).ids)
    assert prompt.index("one\nMy headline") < prompt.index("two\nMy headline")


def test_a_task_that_is_gone_is_used_only_by_name(labelled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BUILTIN_TASKS, "lamp-2")
    for asked, used in ((None, "free"), ("lamp-2", "lamp-2")):
        assert default_task(labelled.reg, labelled.alice, asked, labelled.entry.fingerprint) == used


def test_a_message_that_cannot_fit_is_refused_and_items_give_way_first(world: World) -> None:
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    room = voice.base.window - 12
    bare = len(voice.prompter.chat_ids([{"role": "user", "content": "x"}]))
    prompt = voice.fit_prompt([{"role": "user", "content": "x" * (room - bare)}])
    assert (prompt.dropped_messages, prompt.dropped_items) == (0, 2) and len(prompt.ids) <= room
    with pytest.raises(PromptTooLong):
        voice.fit_prompt([{"role": "user", "content": "x" * room}])


def test_a_cut_answer_is_said_to_be_cut(world: World) -> None:
    result, events = result_of(
        answer_question(world.reg, world.entry, None, "hello", asking(answer=AnswerOptions(max_tokens=1)))
    )
    assert (result["tokens"], result["ended"]) == (1, "length")
    assert "cut at the limit of 1 token" in notes_of(events)


def test_late_parts_answer_without_being_folded(store_root: Path) -> None:
    """A late stack changes the answer; the early tokens of the next turn never meet it."""
    world = make_world(store_root, stacks="late")
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    weights = voice.base.model.get_parameter("model.layers.1.self_attn.q_proj.weight").clone()
    found = []
    for text in ("a first question", "and a second one"):
        spoken, ids = Generation(), voice.fit_prompt([{"role": "user", "content": text}]).ids
        list(voice.stream_answer(ids, spoken, text))
        found.append(spoken.text)
    fresh = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    again = Generation()
    list(fresh.stream_answer(ids, again, text))
    assert again.text == found[1]
    voice.set_user(world.alice, "fused")
    assert torch.equal(voice.base.model.get_parameter("model.layers.1.self_attn.q_proj.weight"), weights)
    fused = Generation()
    list(voice.stream_answer(ids, fused, text))
    assert fused.text != found[1]
    world.reg.close()


def test_an_answer_to_a_tasks_question_is_as_long_as_its_answers_are() -> None:
    task = replace(BUILTIN_TASKS["lamp-5"], answer_tokens=7)
    assert (
        answer_token_limit(AnswerOptions(), task) == 7 and answer_token_limit(AnswerOptions(max_tokens=40), task) == 40
    )
    assert answer_token_limit(AnswerOptions(), None) == CHAT_TOKENS
    assert answer_token_limit(AnswerOptions(), replace(task, answer_tokens=9_000)) == CHAT_TOKENS


def test_the_limit_is_the_tasks_where_its_prompt_is_used(world: World) -> None:
    asked = asking(task="lamp-5", answer=AnswerOptions())
    result, _ = result_of(answer_question(world.reg, world.entry, "carol", "Hello", asked))
    assert 0 < result["tokens"] <= BUILTIN_TASKS["lamp-5"].answer_tokens < CHAT_TOKENS
