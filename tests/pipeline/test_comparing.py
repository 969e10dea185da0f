"""Comparing: every mode answers the same prompt as it would alone, and the voice is as before afterwards."""

import json
from dataclasses import replace

import pytest

from mta_cli.engine.tasks import MOVIE_TAGS
from mta_cli.events import Token
from mta_cli.options import AnswerOptions
from mta_cli.pipeline.comparing import compare, compare_with
from mta_cli.pipeline.converse import Voice, ask
from store.models import NewItem
from tests.pipeline.world import BRIEF, World, asking, notes_of, result_of, text_of


def test_compare_answers_in_every_mode_with_one_load(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine import base as loading

    loads, load = [], loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *a, **k: (loads.append(a), load(*a, **k))[1])
    drawn = AnswerOptions(max_tokens=12, temperature=1.0)  # the tiny base's likeliest tokens are no characters
    result, events = result_of(compare(world.reg, world.entry, "alice", "hello there", asking(answer=drawn)))
    assert len(loads) == 1
    assert set(result) >= {"user", "prompt", "answers"} and result["prompt"] == "hello there"
    assert result["answers"] == {mode: text_of(events, mode) for mode in ("base", "fused", "adapted")}
    assert len(set(result["answers"].values())) == 3
    for mode in ("base", "fused", "adapted"):
        single, _ = result_of(ask(world.reg, world.entry, "alice", "hello there", asking(mode=mode, answer=drawn)))
        assert single["text"] == result["answers"][mode]
        assert single["source"] == result["details"][mode]["source"]


def test_compare_leaves_out_what_is_not_there(world: World) -> None:
    result, events = result_of(compare(world.reg, world.entry, "bob", "hello", asking()))
    assert result["answers"]["adapted"] is None and result["answers"]["fused"]
    assert "no stack" in notes_of(events)


def test_answers_grow_together(world: World) -> None:
    drawn = AnswerOptions(max_tokens=12, temperature=1.0)
    _, events = result_of(compare(world.reg, world.entry, "alice", "hello there", asking(answer=drawn)))
    columns = [event.column for event in events if isinstance(event, Token)]
    assert len(set(columns[: len(columns) // 2])) == 3


def test_labels_of_every_mode_are_those_of_each_alone(labelled: World) -> None:
    of_task = asking(task="lamp-2")
    result, events = result_of(compare(labelled.reg, labelled.entry, "alice", "a film about space", of_task))
    for mode, answer in result["answers"].items():
        single, _ = result_of(
            ask(labelled.reg, labelled.entry, "alice", "a film about space", asking(task="lamp-2", mode=mode))
        )
        assert answer == single["text"] == text_of(events, mode)
        assert result["details"][mode]["labels"] == pytest.approx(single["labels"], abs=1e-3)
        assert result["details"][mode]["ended"] == "label"


def test_personal_columns_add_what_the_person_is_used_to_say(labelled: World) -> None:
    reg, tags = labelled.reg, MOVIE_TAGS
    question = "a film about space"
    rates = json.dumps({"label_rates": [1 / 15] * 15})
    reg._db.write("UPDATE banks SET config = ?", (rates,))
    reg.items.append(labelled.alice.id, [NewItem(f"x{n}", "lamp-2", "zzz", tags[9]) for n in range(30)])
    of_task = asking(history_items=0, task="lamp-2")
    without = asking(history_items=0, task="lamp-2", answer=replace(BRIEF, prior_weight=0.0))
    used, _ = result_of(compare(reg, labelled.entry, "alice", question, of_task))
    bare, _ = result_of(compare(reg, labelled.entry, "alice", question, without))
    assert used["details"]["base"]["labels"] == pytest.approx(bare["details"]["base"]["labels"])
    for mode in ("fused", "adapted"):
        added = [used["details"][mode]["labels"][tag] - bare["details"][mode]["labels"][tag] for tag in tags]
        assert added.index(max(added)) == 9 and max(added) > 0.5 and min(added) < 0
        alone = asking(history_items=0, task="lamp-2", mode=mode)
        single, _ = result_of(ask(reg, labelled.entry, "alice", question, alone))
        assert single["labels"] == pytest.approx(used["details"][mode]["labels"], abs=1e-3)


def test_a_comparison_that_is_broken_off_leaves_the_voice_as_it_was(world: World) -> None:
    voice = Voice.open(world.reg, world.entry, world.alice, asking())
    before = {key: weight.clone() for key, weight in voice.base.model.state_dict().items()}
    ids, _, _ = voice.fitted([{"role": "user", "content": "hello"}], [])
    events = compare_with(voice, "hello", ids)
    next(events)
    inside = voice.base.model.state_dict()
    assert any(bool((inside[key] != weight).any()) for key, weight in before.items())
    events.close()  # type: ignore[attr-defined]
    assert all(bool((voice.base.model.state_dict()[key] == weight).all()) for key, weight in before.items())
    assert voice.user == world.alice and voice.source.mode == "adapted"
