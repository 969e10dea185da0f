"""Measuring on held-out queries: what is counted, stored and reported."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mta_cli.engine.evaluation.calibration import NO_LABEL_LOGLIK, log_probabilities
from mta_cli.engine.evaluation.whose import unpack_logliks
from mta_cli.engine.lora.adapter import AdapterMerger
from mta_cli.engine.memory.label_prior import add_label_prior
from mta_cli.engine.model.load import load_base
from mta_cli.engine.scoring.log_likelihood import label_scores
from mta_cli.engine.text.tasks import BUILTIN_TASKS, Task
from mta_cli.errors import BadInput, IntegrityFault
from mta_cli.options import MemoryOptions, PromptOptions
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.answer_queries import scorable_queries, unscorable_queries_note
from mta_cli.pipeline.evaluation.stored_models import choose_examples, evaluate_users
from mta_cli.pipeline.evaluation.whose import group_users_with_similar_topics
from mta_cli.pipeline.memory.bank_memory import BankMemory
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.requests import AdaptRequest
from mta_cli.pipeline.user_weights import load_task_adapter, loras_by_placement
from store.records import NewItem, User
from store.registry import Registry
from tests.engine.answers import answer_alone
from tests.metrics_by_hand import score
from tests.pipeline.town import CPU, QUICK, SHORT, TASK, built, finish, fuse_request, notes

STEPS = ("no-model", "base", "base+examples", "common", "common+memory", "fused", "adapted", "another's")


def test_a_damaged_registry_is_named_before_the_first_answer(banked: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.pipeline.models.verify._verified_keys", set())
    monkeypatch.setattr("store.integrity.check.find_structure_faults", lambda root: ["registry.db is damaged"])
    users = [banked.users.get(name) for name in SHORT]
    with pytest.raises(IntegrityFault, match="registry"):
        finish(evaluate_users(banked, replace(fuse_request(), machine=replace(CPU, verify=True)), users))


def adapted(reg: Registry, users: list[User]) -> None:
    """A fusion and a stack of each of `users`."""
    alone = replace(fuse_request(), memory=MemoryOptions(memory="habit"))  # neighbours know all of these answers
    finish(adapt_users(reg, AdaptRequest(users, QUICK, alone)))


def evaluated(
    reg: Registry, users: list[User], task: Task = TASK, memory: str = "neighbours", history: int = 2
) -> dict[str, Any]:
    """The document of these users, measured at every step."""
    request = replace(fuse_request(), task=task, prompt=PromptOptions(history), memory=MemoryOptions(memory=memory))
    found: dict[str, Any] = finish(evaluate_users(reg, request, users))[0]
    return found


def test_every_step_answers_every_query_and_is_stored(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT]
    adapted(banked, users)
    result = evaluated(banked, users)
    assert result["users"] == 3 and result["queries"] == 6 and tuple(result["methods"]) == STEPS
    predictions = banked.evaluations.predictions.load_predictions(result["evaluation"])
    assert len(predictions) == 6 * len(STEPS)
    for step in STEPS:
        own = [p for p in predictions if p.method == step]
        plain = score("accuracy", [p.answer for p in own], [p.gold for p in own], TASK.labels)
        for name, value in plain.items():
            interval = result["methods"][step][name]
            assert interval["value"] == pytest.approx(value)
            assert interval["low"] <= interval["value"] <= interval["high"]
        assert all(p.answer in TASK.labels and p.gold_loglik <= 0 for p in own)
    assert result["reference"] == "adapted" and result["metric"] == "accuracy"
    assert {(row["a"], row["b"]) for row in result["differences"]} == {
        ("adapted", step) for step in STEPS if step != "adapted"
    }
    (stack,) = banked.stacks.of_user(banked.users.get("ida").id)
    kept = {step: result["costs"][step]["bytes"] for step in STEPS if step != "another's"}
    assert kept == {**dict.fromkeys(STEPS[:5], 0), "fused": 36, "adapted": 36 + stack.bytes}
    texts = [[p.gold_loglik for p in predictions if p.method == step] for step in STEPS]
    assert all(one != other for n, one in enumerate(texts) for other in texts[:n]), "each step changes something"


def test_the_ladder_of_few_users_is_over_their_questions_and_the_store_keeps_it(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT]
    adapted(banked, users)
    result = evaluated(banked, users)
    ladder = result["ladder"]
    assert (ladder["unit"], ladder["units"], ladder["questions"]) == ("questions", 6, 6)
    assert [one["step"] for one in ladder["steps"]] == list(STEPS)
    for row in ladder["comparisons"]:
        a, b = (result["methods"][row[side]]["gold_loglik"]["value"] for side in ("step", "below"))
        assert row["value"] == pytest.approx(a - b) and row["verdict"] == "not shown" and row["why"] == "too few"
    stored = banked.evaluations.get(result["evaluation"]).result
    assert stored["ladder"] == json.loads(json.dumps(ladder))
    assert not any(name in json.dumps(stored) for name in SHORT), "a stored document holds no names"


def test_each_step_and_the_one_below_it_differ_in_one_thing(banked: Registry) -> None:
    """The prompts and the label priors are the same from the common model upwards."""
    users = [banked.users.get(name) for name in SHORT]
    adapted(banked, users)
    found = banked.evaluations.predictions.load_predictions(evaluated(banked, users)["evaluation"])
    prompts = {step: [p.prompt for p in found if p.method == step] for step in STEPS}
    with_examples = STEPS[2:]
    assert (
        all(prompts[step] == prompts["base+examples"] for step in with_examples)
        and prompts["base"] != prompts["common"]
    )
    plain = evaluated(banked, users, memory="off", history=0)
    assert tuple(plain["methods"]) == ("no-model", "base", "common", "fused", "adapted", "another's")


def test_the_control_has_anothers_weights_with_ones_own_examples_and_memory(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT]
    adapted(banked, users)
    items = {user.id: banked.items.recent_items(user.id, TASK.name, 50) for user in users}
    (nearest,) = group_users_with_similar_topics([user.id for user in users], items, {})
    found = banked.evaluations.predictions.load_predictions(evaluated(banked, users)["evaluation"])
    for one in (p for p in found if p.method == "adapted"):
        own, *others = unpack_logliks(one.whose or b"")
        assert own == pytest.approx(one.gold_loglik, abs=1e-5) and len(others) == len(users) - 1
        (control,) = [p for p in found if p.method == "another's" and p.query_id == one.query_id]
        place = sorted(nearest[one.user_id]).index(nearest[one.user_id][0])
        assert others[place] == pytest.approx(control.gold_loglik, abs=1e-4)
    assert all(p.whose is None for p in found if p.method not in ("fused", "adapted"))


def test_whose_is_it_counts_the_answers_whose_own_model_is_first(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT]
    adapted(banked, users)
    result = evaluated(banked, users)
    found = banked.evaluations.predictions.load_predictions(result["evaluation"])
    for entry in result["ladder"]["whose"]:
        rows = [unpack_logliks(p.whose or b"") for p in found if p.method == entry["step"]]
        assert entry["questions"] == len(rows) == 6 and entry["chance"] == pytest.approx(6 / 3)
        first = sum(own > max(others) + 1e-6 for own, *others in rows)
        assert entry["first"] >= first and entry["share"] == pytest.approx(entry["first"] / 6)
    assert [entry["step"] for entry in result["ladder"]["whose"]][:2] == ["fused", "adapted"]


def test_one_user_alone_has_no_control_and_nobody_to_be_told_from(banked: Registry) -> None:
    ida = banked.users.get(SHORT[0])
    adapted(banked, [ida])
    result = evaluated(banked, [ida])
    assert "another's" not in result["methods"] and result["ladder"]["control"] is None
    assert result["ladder"]["whose"] == [] and result["ladder"]["unit"] == "questions"


def test_the_examples_are_of_the_largest_the_median_and_the_smallest_gain(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT]
    adapted(banked, users)
    result = evaluated(banked, users)
    found = banked.evaluations.predictions.load_predictions(result["evaluation"])
    logliks = {(p.method, p.query_id): p.gold_loglik for p in found}
    gains = {p.query_id: p.gold_loglik - logliks["common+memory", p.query_id] for p in found if p.method == "adapted"}
    order = sorted(gains, key=lambda query: (gains[query], query), reverse=True)
    texts = {query: f"question {query}" for query in gains}
    assert choose_examples(found, result["ladder"], texts) == ("questions", [order[0], order[3], order[5]])
    assert len(result["examples"]) == 3 and all(set(one["answers"]) == set(STEPS) for one in result["examples"])


def test_a_question_that_most_users_were_asked_is_the_example() -> None:
    gains = {
        10: (1, 0.5),
        11: (1, 3.0),
        20: (2, 0.1),
        30: (3, -0.2),
        31: (3, -2.0),
        40: (4, 9.0),
    }
    found = [
        SimpleNamespace(method=method, user_id=user, query_id=query, gold_loglik=gain if method == "adapted" else 0.0)
        for query, (user, gain) in gains.items()
        for method in ("common", "adapted", "another's")
    ]
    ladder = {"unit": "users", "steps": [{"step": "common"}, {"step": "adapted"}, {"step": "another's"}]}
    same = {10: "the lift", 11: "the soup", 20: "the lift", 30: "the lift", 31: "the soup", 40: "the roof"}
    assert choose_examples(found, ladder, same) == ("shared", [10, 20, 30]), "the user with a larger gain was not asked"
    rarer = same | {20: "the gate"}
    assert choose_examples(found, ladder, rarer) == ("users", [40, 20, 31])


def test_a_gold_that_is_no_number_is_left_out_of_scores(peopled: Registry) -> None:
    user, task = peopled.users.get("ida"), BUILTIN_TASKS["lamp-3"]
    asked = [NewItem(f"q{n}", task.name, "a text", gold) for n, gold in enumerate(("4", "great"))]
    peopled.items.append_queries(user.id, asked)
    queries, unscored = scorable_queries(peopled, task, [user.id])
    assert [one.gold for one in queries[user.id]] == ["4"]
    assert notes(list(unscorable_queries_note(unscored))) == [
        "Held-out queries whose answer is not a number are left out: 1."
    ]


def test_nobody_to_measure_is_said(peopled: Registry) -> None:
    user = peopled.users.add("nobody")
    with pytest.raises(BadInput, match="held-out"):
        finish(evaluate_users(peopled, fuse_request(), [user]))


def test_together_is_what_each_gets_alone(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and gold likelihoods of every user at every step equal those of the user's model folded into the base."""
    built(peopled, placement="late")
    users = [peopled.users.get(name) for name in SHORT]
    finish(adapt_users(peopled, AdaptRequest(users, QUICK, fuse_request())))
    entry = resolve_model("tiny", "base")
    monkeypatch.setattr("mta_cli.pipeline.evaluation.stored_models.MAX_ANSWERS_PER_BATCH", 5)
    result = evaluated(peopled, users)
    base = load_base(entry.path, name="tiny", fingerprint=entry.fingerprint, device="cpu", dtype="float32")
    folder = AdapterMerger(base)
    examples = {shown: PromptRowBuilder(peopled, base, TASK, shown) for shown in (0, 2)}
    memory = BankMemory(peopled, TASK, peopled.banks.latest_ready_bank(TASK.name, base.fingerprint))
    labels = [examples[2].prompter.answer_ids(label) for label in TASK.labels]
    for prediction in peopled.evaluations.predictions.load_predictions(result["evaluation"]):
        if prediction.method in ("no-model", "another's"):
            continue
        user = peopled.users.by_id(prediction.user_id)
        (query,) = [q for q in peopled.items.queries(user.id, TASK.name) if q.id == prediction.query_id]
        late = None
        if prediction.method in ("common", "common+memory"):
            folder.set_adapter(*load_task_adapter(peopled, TASK.name, base.fingerprint))
        else:
            mode = prediction.method.partition("+")[0]
            weights, late, _ = loras_by_placement(peopled, base.fingerprint, user, TASK.name, mode)
            folder.set_adapter(weights)
        prompt = examples[0 if prediction.method == "base" else 2].query_prompt(query)
        scores = label_scores(base, prompt, labels, () if late is None else (late,))
        has_memory = prediction.method in ("common+memory", "fused", "adapted")
        prior = memory.prior_for(user, "common", MemoryOptions()) if has_memory else None
        found = add_label_prior(scores, prior, query.input)
        assert prediction.answer == TASK.labels[found.index(max(found))]
        known = log_probabilities(found, 1.0)[TASK.labels.index(query.gold)]
        assert prediction.gold_loglik == pytest.approx(known, abs=1e-3)
        assert (late is not None) == (prediction.method in ("fused", "adapted"))


def test_texts_are_scored_and_the_shown_ones_generated(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT[:2]]
    finish(adapt_users(banked, AdaptRequest(users, QUICK, fuse_request())))
    entry = resolve_model("tiny", "base")
    free = replace(TASK, labels=(), metric="rouge", answer_tokens=9)
    base = load_base(entry.path, name="tiny", fingerprint=entry.fingerprint, device="cpu", dtype="float32")
    examples, folder = PromptRowBuilder(banked, base, free, 2), AdapterMerger(base)
    result = evaluated(banked, users, free)
    assert result["metric"] == "gold_loglik" and "common+memory" not in result["methods"]
    assert result["ladder"]["steps"][0] == {"step": "no-model", "gold_loglik": None, "metric": None}
    *models, style = result["ladder"]["whose"]
    assert [one["step"] for one in models] == ["fused", "adapted"] and style["step"] == "naive-bayes"
    assert (style["first"], style["questions"]) == (4, 4), "each has a tag of their own"
    shown = {one["question"]: one for one in result["examples"]}
    predictions = banked.evaluations.predictions.load_predictions(result["evaluation"])
    assert len(predictions) == 4 * 7
    for prediction in predictions:
        user = banked.users.by_id(prediction.user_id)
        (query,) = [q for q in banked.items.queries(user.id, TASK.name) if q.id == prediction.query_id]
        if prediction.method != "no-model":
            assert bool(prediction.answer) <= (query.input in shown)
        if prediction.method not in ("fused", "adapted"):
            continue
        folder.set_adapter(loras_by_placement(banked, base.fingerprint, user, TASK.name, prediction.method)[0])
        if query.input in shown:
            ids = answer_alone(base, examples.query_prompt(query), 9)
            assert prediction.answer == base.tokenizer.decode(ids, skip_special_tokens=True).strip()
            assert shown[query.input]["answers"][prediction.method] == prediction.answer
        wanted = examples.prompter.answer_ids(query.gold)
        (known,) = label_scores(base, examples.query_prompt(query), [wanted])
        assert prediction.gold_loglik == pytest.approx(known / len(wanted), abs=1e-3)


def test_a_gold_that_is_no_label_counts_as_unlikely(banked: Registry) -> None:
    users = [banked.users.get(name) for name in SHORT[:2]]
    finish(adapt_users(banked, AdaptRequest(users, QUICK, fuse_request())))
    gold = banked.items.queries(users[0].id, TASK.name)[0].gold
    other = replace(TASK, labels=(gold, "none of theirs"), answer_tokens=9)
    result = evaluated(banked, users, other)
    predictions = banked.evaluations.predictions.load_predictions(result["evaluation"])
    assert all(p.answer in other.labels for p in predictions)
    assert all((p.gold_loglik == NO_LABEL_LOGLIK) is (p.gold not in other.labels) for p in predictions)
    assert {p.gold in other.labels for p in predictions} == {True, False}
