"""Comparing: every mode answers the same prompt as it would alone, and the voice is as before afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.scoring.log_likelihood import label_scores
from mta_cli.engine.text.tasks import MOVIE_TAGS
from mta_cli.errors import Command, NotFound, UsersChanged
from mta_cli.events import JobResult, TextChunk
from mta_cli.options import AnswerOptions, MemoryOptions
from mta_cli.pipeline.chat.answer import ChatModel, answer_question
from mta_cli.pipeline.chat.compare import (
    Question,
    answer_metrics,
    compare_prompt,
    compare_queries,
    compare_question,
    compare_user_models,
    comparison_column_keys,
)
from mta_cli.pipeline.user_weights import PERSONALISATION_MODES, load_task_adapter
from store.records import NewItem
from tests.pipeline.world import BRIEF, World, asking, notes_of, result_of, text_of
from tests.reference import reference_logits


def test_compare_answers_in_every_mode_with_one_load(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.model import load as loading

    loads, load = [], loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *a, **k: (loads.append(a), load(*a, **k))[1])
    drawn = AnswerOptions(max_tokens=12, temperature=1.0)  # the tiny base's likeliest tokens are not characters
    (result,), events = result_of(
        compare_user_models(world.reg, world.entry, ["alice"], "hello there", asking(answer=drawn))
    )
    assert len(loads) == 1
    assert set(result) >= {"user", "prompt", "answers"} and result["prompt"] == "hello there"
    assert result["answers"] == {mode: text_of(events, mode) for mode in PERSONALISATION_MODES}
    assert len(set(result["answers"].values())) == 4 and result["own_examples"] == 2
    steps = {mode: detail["step"] for mode, detail in result["details"].items()}
    assert steps == {"base": "base+examples", "common": "common", "fused": "fused", "adapted": "adapted"}
    for mode in PERSONALISATION_MODES:
        single, _ = result_of(
            answer_question(world.reg, world.entry, "alice", "hello there", asking(mode=mode, answer=drawn))
        )
        assert single["text"] == result["answers"][mode]
        assert single["source"] == result["details"][mode]["source"]


def test_compare_leaves_out_what_is_not_there(world: World) -> None:
    (result,), events = result_of(compare_user_models(world.reg, world.entry, ["bob"], "hello", asking()))
    assert result["answers"]["adapted"] is None and result["answers"]["fused"]
    assert "no stack" in notes_of(events)
    assert comparison_column_keys(world.reg, world.bob, None, world.entry.fingerprint, []) == [
        "base",
        "common",
        "fused",
    ]


def test_a_user_without_a_model_has_the_common_one_and_a_task_without_a_bank_the_base_alone(labelled: World) -> None:
    of_task = asking(task="lamp-2", history_items=0)
    (result,), _ = result_of(compare_user_models(labelled.reg, labelled.entry, ["carol"], "a film", of_task))
    assert [mode for mode, answer in result["answers"].items() if answer is not None] == ["base", "common"]
    asked_free = asking(task="free", history_items=0)
    (result,), _ = result_of(compare_user_models(labelled.reg, labelled.entry, ["alice"], "hi", asked_free))
    assert [mode for mode, answer in result["answers"].items() if answer is not None] == ["base"]
    assert result["own_examples"] == 0 and result["details"]["base"]["step"] == "base"
    with pytest.raises(NotFound, match="no bank for task free") as caught:
        ChatModel.load_for_user(labelled.reg, labelled.entry, labelled.alice, asking(task="free", mode="common"))
    assert caught.value.hint == Command("bank build", task="free")


def test_several_users_are_answered_with_one_load(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.model import load as loading

    loads, load = [], loading.load_base
    monkeypatch.setattr(loading, "load_base", lambda *a, **k: (loads.append(a), load(*a, **k))[1])
    drawn = asking(answer=AnswerOptions(max_tokens=12, temperature=1.0))
    both, _ = result_of(compare_user_models(world.reg, world.entry, ["bob", "alice"], "hello", drawn))
    assert len(loads) == 1 and [each["user"] for each in both] == ["bob", "alice"]
    (alone,), _ = result_of(compare_user_models(world.reg, world.entry, ["alice"], "hello", drawn))
    assert both[1]["answers"] == alone["answers"]


def test_an_unknown_user_is_refused_before_the_base_is_loaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChatModel, "load_for_user", lambda *a: pytest.fail("the base was loaded"))
    with pytest.raises(NotFound, match="'alise'"):
        result_of(compare_user_models(world.reg, world.entry, ["bob", "alise"], "hello", asking()))


def test_answers_grow_together(world: World) -> None:
    drawn = AnswerOptions(max_tokens=12, temperature=1.0)
    _, events = result_of(compare_user_models(world.reg, world.entry, ["alice"], "hello there", asking(answer=drawn)))
    columns = [event.column for event in events if isinstance(event, TextChunk)]
    assert len(set(columns[: len(columns) // 2])) == 4


def test_labels_of_every_mode_are_those_of_each_alone(labelled: World) -> None:
    of_task = asking(task="lamp-2")
    (result,), events = result_of(
        compare_user_models(labelled.reg, labelled.entry, ["alice"], "a film about space", of_task)
    )
    for mode, answer in result["answers"].items():
        single, _ = result_of(
            answer_question(
                labelled.reg, labelled.entry, "alice", "a film about space", asking(task="lamp-2", mode=mode)
            )
        )
        assert answer == single["text"] == text_of(events, mode)
        assert result["details"][mode]["labels"] == pytest.approx(single["labels"], abs=1e-3)
        assert result["details"][mode]["ended"] == "label"


def test_the_common_column_is_the_base_with_the_task_adapter(labelled: World) -> None:
    """And nothing of anybody's own but examples and memory, so that what fused has more is the user's anchors."""
    how = asking(task="lamp-2", memory=MemoryOptions(memory="off"))
    (result,), _ = result_of(compare_user_models(labelled.reg, labelled.entry, ["alice"], "a film", how))
    base, common = (result["details"][mode]["labels"] for mode in ("base", "common"))
    model = ChatModel.load_for_user(labelled.reg, labelled.entry, labelled.alice, how)
    model.set_user(labelled.alice, "base")
    ids = model.fit_prompt([{"role": "user", "content": "a film"}]).ids
    answers = [model.prompter.answer_ids(label) for label in MOVIE_TAGS]
    assert list(base.values()) == pytest.approx(label_scores(model.base, ids, answers), abs=1e-3)
    (adapter,) = load_task_adapter(labelled.reg, "lamp-2", labelled.entry.fingerprint)
    model._merger.set_adapter(adapter)
    assert list(common.values()) == pytest.approx(label_scores(model.base, ids, answers), abs=1e-3)
    assert list(common.values()) != pytest.approx(list(base.values()), abs=1e-2)
    assert result["details"]["common"]["source"] == {"mode": "common", "bank": "tests", "version": 1, "anchors": []}
    assert [one["step"] for one in result["details"].values()] == ["base+examples", "common", "fused", "adapted"]


def test_the_common_model_needs_no_user(labelled: World) -> None:
    of_task = asking(task="lamp-2", history_items=0, mode="common", memory=MemoryOptions(memory="off"))
    nobodys, _ = result_of(answer_question(labelled.reg, labelled.entry, None, "a film", of_task))
    alices, _ = result_of(answer_question(labelled.reg, labelled.entry, "alice", "a film", of_task))
    assert nobodys["labels"] == alices["labels"] and nobodys["source"] == alices["source"]


def test_all_columns_but_the_base_add_what_the_person_is_used_to_say(labelled: World) -> None:
    reg, tags = labelled.reg, MOVIE_TAGS
    question = "a film about space"
    rates = json.dumps({"label_rates": [1 / 15] * 15})
    reg._db.execute_write("UPDATE banks SET config = ?", (rates,))
    reg.items.append_items(labelled.alice.id, [NewItem(f"x{n}", "lamp-2", "zzz", tags[9]) for n in range(30)])
    of_task = asking(history_items=0, task="lamp-2")
    without = asking(history_items=0, task="lamp-2", answer=BRIEF, memory=MemoryOptions(memory="off"))
    (used,), _ = result_of(compare_user_models(reg, labelled.entry, ["alice"], question, of_task))
    (bare,), _ = result_of(compare_user_models(reg, labelled.entry, ["alice"], question, without))
    assert used["details"]["base"]["labels"] == pytest.approx(bare["details"]["base"]["labels"])
    assert used["details"]["common"]["step"] == "common+memory"
    for mode in ("common", "fused", "adapted"):
        added = [used["details"][mode]["labels"][tag] - bare["details"][mode]["labels"][tag] for tag in tags]
        assert added.index(max(added)) == 9 and max(added) > 0.5 and min(added) < 0
        alone = asking(history_items=0, task="lamp-2", mode=mode)
        single, _ = result_of(answer_question(reg, labelled.entry, "alice", question, alone))
        assert single["labels"] == pytest.approx(used["details"][mode]["labels"], abs=1e-3)


def asked(world: World, question: Question, *others: str, **how: Any) -> tuple[dict[str, Any], str]:
    """The result of a question to alice's columns and to others, and what the person was told."""
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking(**how))
    result, events = result_of(compare_question(voice, question, [world.reg.users.get(name) for name in others]))
    return result, notes_of(events)


def test_another_user_who_was_removed_ends_the_comparison(world: World) -> None:
    voice, bob = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking()), world.reg.users.get("bob")
    world.reg.users.forget(bob.id)
    with pytest.raises(UsersChanged, match="removed"), voice.hold_users([bob]):
        pass


def test_the_gold_is_weighed_in_every_column_as_it_is_alone(world: World) -> None:
    gold = "a red house"
    result, _ = asked(world, Question("where?", gold))
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    ids = voice.fit_prompt([{"role": "user", "content": "where?"}]).ids
    answer = voice.prompter.answer_ids(gold)
    for mode in PERSONALISATION_MODES:
        voice.set_user(world.alice, mode)
        alone = _loglik(voice, world.entry.path, ids, answer) / len(answer)
        assert result["details"][mode]["gold"]["loglik"] == pytest.approx(alone, abs=1e-3)
        assert result["details"][mode]["gold"]["over"] == "token"
        assert set(result["details"][mode]["gold"]["metrics"]) == {"rouge_1", "rouge_l"}
    assert result["gold"] == gold


def _loglik(voice: ChatModel, path: Path, ids: list[int], answer: list[int]) -> float:
    """The answer's log-likelihood by one plain forward pass of the model as it is folded."""
    logits = reference_logits(voice.base, path, [*ids, *answer])[len(ids) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(answer)), answer].sum())


def test_the_gold_among_labels_is_a_share_of_one(labelled: World) -> None:
    shares = []
    for tag in MOVIE_TAGS:
        result, _ = asked(labelled, Question("a film about space", tag), task="lamp-2")
        detail = result["details"]["adapted"]
        assert detail["gold"]["over"] == "labels"
        assert detail["gold"]["metrics"] == {"accuracy": float(result["answers"]["adapted"] == tag)}
        shares.append(math.exp(detail["gold"]["loglik"]))
    assert sum(shares) == pytest.approx(1.0, abs=1e-4)


def test_a_gold_that_is_no_label_is_weighed_by_its_words(labelled: World) -> None:
    result, _ = asked(labelled, Question("a film about space", "no label at all"), task="lamp-2")
    gold = result["details"]["base"]["gold"]
    assert gold["over"] == "token" and gold["metrics"] == {"accuracy": 0.0}


def test_a_gold_that_does_not_fit_costs_no_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.generation import request
    from mta_cli.errors import BadInput

    def refuse(*rest: Any) -> None:
        raise BadInput("it has no room")

    monkeypatch.setattr(request, "require_window", refuse)
    result, told = asked(world, Question("where?", "here"))
    assert "not measured: it has no room" in told
    assert result["answers"]["adapted"] is not None and "gold" not in result["details"]["adapted"]


def test_without_a_gold_nothing_is_measured(world: World) -> None:
    result, _ = asked(world, Question("where?"))
    assert "gold" not in result and "gold" not in result["details"]["base"]
    assert result["details"]["base"]["tokens_per_second"] > 0


def test_another_persons_model_answers_the_same_prompt(world: World) -> None:
    question = Question("hello there", "well")
    drawn = AnswerOptions(max_tokens=12, temperature=1.0)
    result, _ = asked(world, question, "bob", "bob", answer=drawn)
    assert list(result["answers"]) == [*PERSONALISATION_MODES, "@bob"]
    detail = result["details"]["@bob"]
    assert detail["user"] == "bob" and detail["source"]["mode"] == "fused"
    # bob's recipe is alice's too, so that his fusion must say what hers says
    assert result["answers"]["@bob"] == result["answers"]["fused"]
    assert detail["gold"]["loglik"] == pytest.approx(result["details"]["fused"]["gold"]["loglik"], abs=1e-3)


def test_who_has_no_model_is_told_and_left_out(world: World) -> None:
    result, told = asked(world, Question("hello there"), "carol")
    assert list(result["answers"]) == list(PERSONALISATION_MODES)
    assert "carol has no model of their own for free" in told


def test_other_peoples_columns_have_their_own_label_prior(labelled: World) -> None:
    reg = labelled.reg
    reg._db.execute_write("UPDATE banks SET config = ?", (json.dumps({"label_rates": [1 / 15] * 15}),))
    reg.items.append_items(labelled.bob.id, [NewItem(f"x{n}", "lamp-2", "zzz", MOVIE_TAGS[9]) for n in range(30)])
    result, _ = asked(labelled, Question("a film about space"), "bob", history_items=0, task="lamp-2")
    hers, his = (result["details"][key]["labels"] for key in ("fused", "@bob"))
    added = [his[tag] - hers[tag] for tag in MOVIE_TAGS]
    assert added.index(max(added)) == 9 and max(added) > 0.5


def test_a_held_out_question_sees_no_later_item(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    late = NewItem("late", "free", "where is the key", "under the mat", "2024-05-05")
    world.reg.items.append_items(world.alice.id, [late])
    seen: list[str] = []
    fitted = ChatModel.fit_prompt

    def look(self: ChatModel, messages: Any, before: Any = None) -> Any:
        prompt = fitted(self, messages, before)
        seen.append(" ".join(example.output for example in prompt.shown))
        return prompt

    monkeypatch.setattr(ChatModel, "fit_prompt", look)
    asked(world, Question("where is the key", "here", "2024-01-01", held_out=True))
    asked(world, Question("where is the key", "here", "2024-06-06", held_out=True))
    asked(world, Question("where is the key"))
    assert ["under the mat" in shown for shown in seen] == [False, True, True]


@pytest.mark.parametrize("name", ["labelled", "world"])
def test_many_questions_are_answered_and_scored_as_each_is_alone(name: str, request: pytest.FixtureRequest) -> None:
    world: World = request.getfixturevalue(name)
    how = {"task": "lamp-2"} if name == "labelled" else {}
    questions = [Question(f"a film about space {n}", MOVIE_TAGS[n], held_out=True) for n in range(3)]
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking(**how))
    bob = world.reg.users.get("bob")
    found = [event.result for event in compare_queries(voice, questions, [bob]) if isinstance(event, JobResult)]
    metric = "accuracy" if name == "labelled" else "rouge_1"
    for place, (question, result) in enumerate(zip(questions, found, strict=True), start=1):
        alone, _ = result_of(compare_question(voice, question, [bob]))
        assert result["answers"] == alone["answers"] and list(result["answers"]) == [*PERSONALISATION_MODES, "@bob"]
        for key, score in result["scores"].items():
            own = [one["details"][key]["gold"]["metrics"][metric] for one in found[:place]]
            assert score == {"metric": metric, "value": pytest.approx(sum(own) / place), "answers": place}
    assert len(found[-1]["scores"]) == 5
    assert voice.user == world.alice and voice.source.mode == "adapted"


@pytest.mark.parametrize(
    ("metric", "labels", "answer", "gold", "expected"),
    [
        ("accuracy", ("a", "b"), " a ", "a", {"accuracy": 1.0}),
        ("mae", ("1", "2", "5"), "2", "5", {"mae": 3.0}),
        ("mae", ("1", "5"), "2", "many", {}),
        ("rouge", (), "the red house", "a red house", {"rouge_1": 2 / 3, "rouge_l": 2 / 3}),
    ],
)
def test_the_metric_of_one_answer_is_the_tasks(
    metric: str, labels: tuple[str, ...], answer: str, gold: str, expected: dict[str, float]
) -> None:
    assert answer_metrics(metric, labels, answer, gold) == pytest.approx(expected)


def test_a_comparison_that_is_broken_off_leaves_the_voice_as_it_was(world: World) -> None:
    voice = ChatModel.load_for_user(world.reg, world.entry, world.alice, asking())
    before = {key: weight.clone() for key, weight in voice.base.model.state_dict().items()}
    events = compare_prompt(voice, "hello", voice.fit_prompt([{"role": "user", "content": "hello"}]))
    next(events)
    inside = voice.base.model.state_dict()
    assert any(bool((inside[key] != weight).any()) for key, weight in before.items())
    events.close()  # type: ignore[attr-defined]
    assert all(bool((voice.base.model.state_dict()[key] == weight).all()) for key, weight in before.items())
    assert voice.user == world.alice and voice.source.mode == "adapted"
