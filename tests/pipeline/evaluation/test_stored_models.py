"""Measuring on held-out queries: what is counted, stored and reported."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from mta_cli.commands.eval_tables import render_result
from mta_cli.engine.evaluation.calibration import NO_LABEL_LOGLIK, log_probabilities
from mta_cli.engine.evaluation.whose import unpack_logliks
from mta_cli.engine.generation.generate import generate_tokens, label_scores
from mta_cli.engine.lora.adapter import AdapterMerger
from mta_cli.engine.memory.label_prior import add_label_prior
from mta_cli.engine.model.load import load_base
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import BadInput, IntegrityFault
from mta_cli.options import MemoryOptions, PromptOptions
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.evaluation.seeds import evaluation_document, load_evaluations
from mta_cli.pipeline.evaluation.stored_models import evaluate_users
from mta_cli.pipeline.memory.bank_memory import BankMemory
from mta_cli.pipeline.models.installed import resolve_model
from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.report.ladder_text import table_rows, verdict_lines
from mta_cli.pipeline.report.wording import MORE_EVIDENCE
from mta_cli.pipeline.user_weights import load_task_adapter, merge_by_placement
from mta_cli.tui.screens.results import ladder_texts
from store.records import NewItem
from store.registry import Registry
from tests.metrics_by_hand import score
from tests.pipeline.town import CPU, QUICK, SHORT, TASK, built, finish, fuse_request, notes

STEPS = ("base", "base+examples", "common", "common+memory", "fused", "adapted", "another's")


def test_a_damaged_registry_is_named_before_the_first_answer(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.models.verify._verified_keys", set())
    monkeypatch.setattr("store.integrity.check.find_structure_faults", lambda root: ["registry.db is damaged"])
    users = [peopled.users.get(name) for name in SHORT]
    entry, machine = resolve_model("tiny", "base"), replace(CPU, verify=True)
    with pytest.raises(IntegrityFault, match="registry"):
        finish(evaluate_users(peopled, entry, TASK, users, PromptOptions(2), machine, MemoryOptions()))


def test_every_step_answers_every_query_and_is_stored(peopled: Registry) -> None:
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    alone = replace(fuse_request(), memory=MemoryOptions(memory="habit"))  # neighbours know all of these answers
    finish(adapt_users(peopled, users, alone, QUICK))
    job = evaluate_users(peopled, resolve_model("tiny", "base"), TASK, users, PromptOptions(2), CPU, MemoryOptions())
    result, _ = finish(job)
    names = ("no-model", *STEPS)
    assert result["users"] == 3 and result["queries"] == 6 and set(result["methods"]) == set(names)
    predictions = peopled.evaluations.predictions.load_predictions(result["evaluation"])
    assert len(predictions) == 6 * len(names)
    for step in names:
        own = [p for p in predictions if p.method == step]
        plain = score("accuracy", [p.answer for p in own], [p.gold for p in own], TASK.labels)
        for name, value in plain.items():
            interval = result["methods"][step][name]
            assert interval["low"] <= interval["value"] <= interval["high"]
            assert name == "macro_f1" or interval["value"] == pytest.approx(value)
        assert all(p.answer in TASK.labels and p.gold_loglik <= 0 for p in own)
        shown = next(one for one in result["ladder"]["steps"] if one["step"] == step)
        assert shown["gold_loglik"] == pytest.approx(sum(p.gold_loglik for p in own) / 6)
    assert result["reference"] == "adapted" and result["metric"] == "accuracy"
    gap = result["methods"]["adapted"]["gold_loglik"]["value"] - result["methods"]["base"]["gold_loglik"]["value"]
    (said,) = [row for row in result["differences"] if (row["b"], row["metric"]) == ("base", "gold_loglik")]
    assert said["value"] == pytest.approx(gap) and said["low"] <= gap <= said["high"]
    kept = {step: result["costs"][step]["bytes"] for step in ("base", "common+memory", "fused", "adapted")}
    assert kept == {"base": 0, "common+memory": 0, "fused": 36, "adapted": 36 + 2 * 7 * 2**2}
    assert all(result["costs"][step]["tokens_per_second"] > 0 for step in STEPS)
    asked = {step: [p.whose for p in predictions if p.method == step] for step in names}
    assert all((None in asked[step]) == (step not in ("fused", "adapted")) for step in names)
    assert all(len(unpack_logliks(one)) == 3 for one in asked["adapted"])
    assert [one["step"] for one in result["ladder"]["whose"]] == ["fused", "adapted"]
    stored = evaluation_document(load_evaluations([result["evaluation"]], peopled))
    assert stored["ladder"] == result["ladder"]
    table, verdicts = (text.plain for text in ladder_texts(stored))
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(render_result(stored))
    for cells in table_rows(result["ladder"]):
        words = " ".join(cells).split()
        assert words in [line.split() for line in captured.get().splitlines()]
        assert words in [line.split() for line in table.splitlines()]
    lines = verdict_lines(result["ladder"], MORE_EVIDENCE)
    assert verdicts.splitlines() == lines and all(line in captured.get() for line in lines)


def test_answers_have_the_memory_that_is_asked_for(peopled: Registry) -> None:
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    finish(adapt_users(peopled, users, fuse_request(), QUICK))
    entry, found = resolve_model("tiny", "base"), {}
    for memory in ("neighbours", "off"):
        job = evaluate_users(peopled, entry, TASK, users, PromptOptions(2), CPU, MemoryOptions(memory=memory))
        number = finish(job)[0]["evaluation"]
        for one in peopled.evaluations.predictions.load_predictions(number):
            found[memory, one.method, one.query_id] = one.gold_loglik
    assert {step for memory, step, _ in found if memory == "off"} == {"no-model", *STEPS} - {"common+memory"}
    for step, query in {(step, query) for memory, step, query in found if memory == "off"}:
        same = found["off", step, query] == pytest.approx(found["neighbours", step, query])
        assert same == (step not in ("fused", "adapted", "another's")), "nothing below has a memory"


def test_a_gold_that_is_no_number_is_left_out_of_scores(peopled: Registry) -> None:
    user, task = peopled.users.get("ida"), BUILTIN_TASKS["lamp-3"]
    asked = [NewItem(f"q{n}", task.name, "a text", gold) for n, gold in enumerate(("4", "great"))]
    peopled.items.append_queries(user.id, asked)
    entry = resolve_model("tiny", "base")
    job = evaluate_users(peopled, entry, task, [user], PromptOptions(0), CPU, MemoryOptions(), weights=())
    result, seen = finish(job)
    assert result["queries"] == 1 and "Held-out queries whose answer is no number are left out: 1." in notes(seen)


def test_nobody_to_measure_is_said(peopled: Registry) -> None:
    user = peopled.users.add("nobody")
    with pytest.raises(BadInput, match="held-out"):
        entry = resolve_model("tiny", "base")
        finish(evaluate_users(peopled, entry, TASK, [user], PromptOptions(2), CPU, MemoryOptions()))


def test_together_is_what_each_gets_alone(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels and gold likelihoods of every user at every step equal those of the user's model folded into the base."""
    built(peopled, placement="late")
    users = [peopled.users.get(name) for name in SHORT]
    finish(adapt_users(peopled, users, fuse_request(), QUICK))
    entry = resolve_model("tiny", "base")
    monkeypatch.setattr("mta_cli.pipeline.evaluation.stored_models.MAX_ANSWERS_PER_BATCH", 5)
    result, _ = finish(evaluate_users(peopled, entry, TASK, users, PromptOptions(2), CPU, MemoryOptions()))
    base = load_base(entry.path, name="tiny", fingerprint=entry.fingerprint, device="cpu", dtype="float32")
    examples, folder = PromptRowBuilder(peopled, base, TASK, 2), AdapterMerger(base)
    labels = [examples.prompter.answer_ids(label) for label in TASK.labels]
    memory = BankMemory.current(peopled, TASK, base.fingerprint)
    checked = 0
    for prediction in peopled.evaluations.predictions.load_predictions(result["evaluation"]):
        user, step, late = peopled.users.by_id(prediction.user_id), prediction.method, None
        (query,) = [q for q in peopled.items.queries(user.id, TASK.name) if q.id == prediction.query_id]
        if step in ("common", "common+memory"):
            folder.set_adapter(*load_task_adapter(peopled, TASK.name, base.fingerprint))
        elif step in ("fused", "adapted"):
            weights, late, _ = merge_by_placement(peopled, base.fingerprint, user, TASK.name, step)
            folder.set_adapter(weights)
            assert late is not None
        else:
            continue
        found = label_scores(base, examples.query_prompt(query), labels, late=late)
        if step != "common":
            found = add_label_prior(found, memory.prior_for(user, "fused", MemoryOptions()), query.input, query.time)
        assert prediction.answer == TASK.labels[found.index(max(found))]
        known = log_probabilities(found, 1.0)[TASK.labels.index(query.gold)]
        assert prediction.gold_loglik == pytest.approx(known, abs=1e-3)
        checked += 1
    assert checked == 4 * 6


def test_texts_are_scored_and_naive_bayes_says_whose_they_are(peopled: Registry) -> None:
    built(peopled)
    users = [peopled.users.get(name) for name in SHORT]
    finish(adapt_users(peopled, users, fuse_request(), QUICK))
    entry = resolve_model("tiny", "base")
    free = replace(TASK, labels=(), metric="rouge", answer_tokens=9)
    base = load_base(entry.path, name="tiny", fingerprint=entry.fingerprint, device="cpu", dtype="float32")
    examples, folder = PromptRowBuilder(peopled, base, free, 2), AdapterMerger(base)
    result, _ = finish(evaluate_users(peopled, entry, free, users, PromptOptions(2), CPU, MemoryOptions()))
    predictions = peopled.evaluations.predictions.load_predictions(result["evaluation"])
    shown = {one["question"] for one in result["examples"]}
    for prediction in (p for p in predictions if p.method == "adapted"):
        user = peopled.users.by_id(prediction.user_id)
        (query,) = [q for q in peopled.items.queries(user.id, TASK.name) if q.id == prediction.query_id]
        folder.set_adapter(merge_by_placement(peopled, base.fingerprint, user, TASK.name, "adapted")[0])
        wanted = examples.prompter.answer_ids(query.gold)
        (known,) = label_scores(base, examples.query_prompt(query), [wanted])
        assert prediction.gold_loglik == pytest.approx(known / len(wanted), abs=1e-3)
        ids = list(generate_tokens(base, examples.query_prompt(query), max_tokens=9))
        said = base.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert prediction.answer == (said if query.input in shown else "")
    *models, style = result["ladder"]["whose"]
    assert [one["step"] for one in models] == ["fused", "adapted"] and style["step"] == "naive-bayes"
    assert (style["first"], style["questions"], style["chance"]) == (6, 6, pytest.approx(2)), "each has one tag"
    assert not any(one["step"] == "no-model" for one in result["ladder"]["comparisons"])


def test_golds_that_are_no_label(peopled: Registry) -> None:
    users = [peopled.users.get(name) for name in SHORT[:2]]
    gold = peopled.items.queries(users[0].id, TASK.name)[0].gold
    other = replace(TASK, labels=(gold, "none of theirs"), answer_tokens=9)
    job = evaluate_users(
        peopled, resolve_model("tiny", "base"), other, users, PromptOptions(2), CPU, MemoryOptions(), weights=()
    )
    found = peopled.evaluations.predictions.load_predictions(finish(job)[0]["evaluation"])
    assert {p.method for p in found} == {"no-model", "base", "base+examples"}
    assert all(p.answer in other.labels for p in found)
    assert all((p.gold_loglik == NO_LABEL_LOGLIK) is (p.gold not in other.labels) for p in found)
    assert {p.gold in other.labels for p in found} == {True, False}
