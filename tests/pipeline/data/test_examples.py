"""The history in a prompt: never the item itself, never later items."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.engine.model.load import load_base
from mta_cli.pipeline.data.examples import PromptRowBuilder, history_mix
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.town import TASK


@pytest.fixture
def examples(peopled: Registry, tiny_base_path: Path) -> PromptRowBuilder:
    base = load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype="float32")
    return PromptRowBuilder(peopled, base, TASK, 3)


def test_training_prompts_show_earlier_items_only(examples: PromptRowBuilder, peopled: Registry) -> None:
    items = peopled.items.recent_items(peopled.users.get("user0").id, "lamp-2")
    rows = examples.training_rows(items)
    for item, row in zip(items, rows, strict=True):
        prompt = examples.prompter.tokenizer.decode(row.input_ids[: row.answer_start])
        shown = [other.input for other in items if prompt.count(f"{other.input[:10]}") and other.id != item.id]
        assert all(text in {other.input for other in items if other.time < item.time} for text in shown)
        history = examples.retrieve_history(item.user_id, item.input, 3, exclude=item.id, before=(item.time, item.id))
        assert item.input not in [example.input for example in history]
        assert len(history) == min(3, items.index(item))


def test_labels_are_the_answer_and_the_end_of_turn(examples: PromptRowBuilder, peopled: Registry) -> None:
    items = peopled.items.recent_items(peopled.users.get("user1").id, "lamp-2")
    for item, row in zip(items, examples.training_rows(items), strict=True):
        decoded = examples.prompter.tokenizer.decode(row.input_ids[row.answer_start :])
        assert decoded == f"{item.output}<|im_end|>"


def test_undated_items_may_all_be_shown_but_the_item_itself(examples: PromptRowBuilder, peopled: Registry) -> None:
    user = peopled.users.add("undated")
    peopled.items.append_items(user.id, [NewItem(f"i{k}", "lamp-2", f"film {k}", "comedy") for k in range(5)])
    first = peopled.items.recent_items(user.id, "lamp-2")[0]
    shown = examples.retrieve_history(user.id, first.input, 10, exclude=first.id, before=(first.time, first.id))
    assert {example.input for example in shown} == {f"film {k}" for k in range(1, 5)}


def test_query_prompts_hold_no_later_item(examples: PromptRowBuilder, peopled: Registry) -> None:
    user = peopled.users.get("user2")
    late = [NewItem("late", "lamp-2", "another robot 0 again", "classic", "2022-01-01")]
    peopled.items.append_items(user.id, late)
    query = peopled.items.queries(user.id, "lamp-2")[0]
    assert "again" not in examples.prompter.tokenizer.decode(examples.query_prompt(query))
    (row,) = examples.query_rows([query])
    assert list(row.input_ids[: row.answer_start]) == examples.query_prompt(query)


def test_one_persons_prompt_holds_nobody_elses_history(examples: PromptRowBuilder, peopled: Registry) -> None:
    user = peopled.users.get("ida")
    shown = examples.retrieve_history(user.id, "film about a horse and a robot", 20)
    assert {example.input for example in shown} == {i.input for i in peopled.items.recent_items(user.id, "lamp-2")}


def test_the_mix_shows_none_one_and_as_many_as_in_use(examples: PromptRowBuilder, peopled: Registry) -> None:
    assert history_mix(3) == (0, 1, 3) and history_mix(1) == (0, 1) and history_mix(0) == (0,)
    items = peopled.items.recent_items(peopled.users.get("user0").id, "lamp-2")
    assert examples.training_rows(items, mix=(0, 3), seed=1) == examples.training_rows(items, mix=(0, 3), seed=1)
    assert examples.training_rows(items, mix=(0, 3), seed=1) != examples.training_rows(items, mix=(0, 3), seed=2)


def test_only_the_items_that_are_named_are_shown(peopled: Registry, tiny_base_path: Path) -> None:
    """In queries' prompts and in training rows alike; who is not named is shown whole."""
    base = load_base(tiny_base_path, name="tiny", fingerprint="f", device="cpu", dtype="float32")
    named, other = peopled.users.get("user0").id, peopled.users.get("user1").id
    items = {user: peopled.items.recent_items(user, "lamp-2") for user in (named, other)}
    shots = items[named][-3:]
    some = PromptRowBuilder(peopled, base, replace(TASK, item_tokens=64), 10, {named: [item.id for item in shots]})
    decode = some.prompter.tokenizer.decode
    (query, *_) = peopled.items.queries(named, "lamp-2")
    prompt = decode(some.query_prompt(query))
    assert [item.id for item in items[named] if item.input in prompt] == [item.id for item in shots]
    for place, (item, row) in enumerate(zip(shots, some.training_rows(shots), strict=True)):
        text = decode(list(row.input_ids[: row.answer_start]))
        assert [each.id for each in items[named] if each.input in text] == [each.id for each in shots[: place + 1]]
        assert text.count(item.input) == 1
    (theirs, *_) = peopled.items.queries(other, "lamp-2")
    assert all(item.input in decode(some.query_prompt(theirs)) for item in items[other])
    nothing = PromptRowBuilder(peopled, base, TASK, 9, {named: []})
    bare = decode(nothing.query_prompt(query))
    assert query.input in bare and not any(item.input in bare for item in items[named])
