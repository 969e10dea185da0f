"""Answering cell by cell: groups that stay the same, everything stored at once, and priors in the scores."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from mta_cli.engine.evaluation.calibration import gold_loglik
from mta_cli.engine.evaluation.whose import unpack_logliks
from mta_cli.engine.methods.method import Method, UserModel
from mta_cli.engine.methods.personalize import build_models
from mta_cli.events import JobProgress, Note
from mta_cli.lab.evaluation import method_run as cells
from mta_cli.lab.evaluation.context import EvalContext
from mta_cli.lab.evaluation.design import make_design
from mta_cli.lab.evaluation.method_run import MethodRun, run_method, unanswered_groups
from mta_cli.lab.methods.catalog import find_method
from mta_cli.pipeline.evaluation import whose
from store.registry import Registry
from store.tables.predictions import Prediction
from tests.engine.memory.fixed_prior import FixedPrior
from tests.lab.evaluation.test_banks import begun, made
from tests.lab.evaluation.trial import Trial, eval_request, profiles
from tests.pipeline.town import TASK

LABELS = len(TASK.labels)


def scores(prediction: Prediction) -> list[float]:
    assert prediction.scores is not None
    return list(struct.unpack(f"<{len(prediction.scores) // 4}f", prediction.scores))


def of(trial: Trial, method: str, fold: int = 0) -> list[Prediction]:
    settings = trial.result["settings"][method]
    return trial.reg.evaluations.predictions.load_predictions(trial.number, fold=fold, method=method, settings=settings)


@pytest.fixture
def field(peopled: Registry) -> EvalContext:
    request = eval_request(folds=2)
    plan = make_design(peopled, request)
    return EvalContext(peopled, request, plan, made(peopled, request), profiles(request, plan))


def column(name: str, fold: int = 0) -> MethodRun:
    return MethodRun(fold, find_method(name), dict(find_method(name).default_settings))


def test_everything_about_an_answer_is_stored(trial: Trial) -> None:
    for p in of(trial, "mta"):
        query = next(q for q in trial.plan.queries[p.user_id] if q.id == p.query_id)
        assert query.input in p.prompt and p.gold == query.gold and p.answer in TASK.labels
        assert p.tokens > len(query.input) and p.seconds > 0
        assert p.gold_tokens == len(p.gold.encode()) + 1 and p.gold_loglik is not None and p.gold_loglik < 0
        assert len(scores(p)) == LABELS
    for p in of(trial, "pooled-rag"):
        assert p.gold_loglik == pytest.approx(scores(p)[TASK.labels.index(p.gold)], rel=1e-6)
        assert TASK.labels.index(p.answer) == scores(p).index(max(scores(p)))


def test_what_answers_without_a_model_has_no_prompt(trial: Trial) -> None:
    for p in of(trial, "majority"):
        assert (p.prompt, p.tokens, p.gold_loglik, p.gold_tokens) == ("", 0, None, None)
        assert p.answer in TASK.labels and len(scores(p)) == LABELS


def test_a_prior_is_added_to_the_scores_of_the_labels(trial: Trial) -> None:
    for plain, with_it in zip(of(trial, "pooled-rag"), of(trial, "pooled-rag+habit"), strict=True):
        added = [b - a for a, b in zip(scores(plain), scores(with_it), strict=True)]
        tag = trial.plan.shots[plain.user_id][0].output  # every user of the town has one tag
        assert added.index(max(added)) == TASK.labels.index(tag) and min(added) < 0
        assert plain.gold_loglik == with_it.gold_loglik


def test_groups_are_filled_one_after_another_and_stay_the_same(
    field: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.evaluation.whose.MAX_USERS_PER_GROUP", 4)
    number, own = begun(field.reg, field.request), column("pooled-rag")
    first, second = (tuple(group) for group in field.design.groups[0])
    assert sorted((*first, *second)) == sorted(field.design.answering_users(0)) and len(first) == len(second) == 3
    assert make_design(field.reg, field.request).groups == field.design.groups
    assert unanswered_groups(field, number, own) == [first, second]
    job = run_method(field, number, own, 10)
    step = next(job)
    assert isinstance(step, JobProgress) and (step.label, step.done) == ("fold 1, pooled-rag", 13)
    job.close()
    assert set(field.reg.evaluations.predictions.finished_cells(number, 0, "pooled-rag", {})) == set(first)
    assert unanswered_groups(field, number, own) == [second]
    seen = list(run_method(field, number, own, 13))
    assert [event.done for event in seen if isinstance(event, JobProgress)] == [16]
    assert unanswered_groups(field, number, own) == [] and list(run_method(field, number, own, 16)) == []
    assert len(field.reg.evaluations.predictions.load_predictions(number)) == 12


def test_a_group_of_whom_one_is_missing_is_made_again_whole(field: EvalContext) -> None:
    number, own = begun(field.reg, field.request), column("majority")
    list(run_method(field, number, own, 0))
    users = field.design.answering_users(0)
    field.reg._db.execute_write("DELETE FROM cells WHERE user_id = ?", (users[2],))
    assert unanswered_groups(field, number, own) == [users]
    list(run_method(field, number, own, 0))
    assert len(field.reg.evaluations.predictions.load_predictions(number)) == 12
    assert len(field.reg.evaluations.predictions.finished_cells(number, 0, "majority", {})) == 6


def test_people_answer_in_portions_as_their_parts_allow(field: EvalContext, monkeypatch: pytest.MonkeyPatch) -> None:
    number, own, asked = begun(field.reg, field.request), column("stack"), list[int]()
    honest = cells.answer_queries

    def counted(base: Any, examples: Any, questions: Any, people: Any, *more: Any) -> Any:
        asked.append(len(people))
        return honest(base, examples, questions, people, *more)

    monkeypatch.setattr(cells, "answer_queries", counted)
    list(run_method(field, number, own, 0))
    together = field.reg.evaluations.predictions.load_predictions(number)
    monkeypatch.setattr(whose, "MAX_LORA_PARAMS_PER_BATCH", 1)
    list(run_method(field, begun(field.reg, eval_request(folds=2, shots=2)), own, 0))
    assert asked == [6, *[1] * 6]
    alone = field.reg.evaluations.predictions.load_predictions(number + 1)
    for one, other in zip(together, alone, strict=True):
        assert scores(one) == pytest.approx(scores(other), abs=1e-4)


def test_what_was_made_for_each_person_is_theirs(field: EvalContext) -> None:
    """Bytes and answers go to the person they were made for, with and without a model among them."""

    def echo(number: int, text: str, time: str | None = None) -> tuple[str, tuple[float, ...]]:
        return f"{number}: {text}", ()

    def make(bench: Any, people: Any, settings: Any) -> list[UserModel]:
        return [UserModel(bytes=p.number, answerer=partial(echo, p.number) if p.number % 2 else None) for p in people]

    number = begun(field.reg, field.request)
    own = MethodRun(1, Method("each", "for a test", memory=None, build=make), {"a": 1})
    list(run_method(field, number, own, 0))
    done = field.reg.evaluations.predictions.finished_cells(number, 1, "each", {"a": 1})
    assert set(done) == set(field.design.answering_users(1)) and all(cell.bytes == user for user, cell in done.items())
    for p in field.reg.evaluations.predictions.load_predictions(number):
        query = next(q for q in field.design.queries[p.user_id] if q.id == p.query_id)
        assert (p.answer == f"{p.user_id}: {query.input}") is bool(p.user_id % 2)


def test_the_first_group_alone_is_made_as_if_nothing_had_been_computed(
    field: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.evaluation.whose.MAX_USERS_PER_GROUP", 4)
    plain = field.base.llama_decoder
    assert plain is not None
    number, found = begun(field.reg, field.request), list[int]()

    def make(bench: Any, people: Any, settings: Any) -> list[UserModel]:
        found.append(len(plain.activation_cache))
        return build_models(find_method("stack"), bench, people, {**column("stack").settings, "steps": 1})

    list(run_method(field, number, column("stack"), 0))
    kept = len(plain.activation_cache)
    assert kept > 0
    list(run_method(field, number, MethodRun(0, Method("again", "for a test", memory=None, build=make), {}), 0))
    assert found[0] == 0 and found[1] >= kept and len(plain.activation_cache) >= kept
    assert cells.timed_group(field.design) == tuple(field.design.groups[0][0])


def test_trainings_that_fail_are_told(field: EvalContext) -> None:
    number, lost = begun(field.reg, field.request), field.design.answering_users(0)[0]

    def make(bench: Any, people: Any, settings: Any) -> list[UserModel]:
        return [UserModel(failed=person.number == lost) for person in people]

    seen = list(run_method(field, number, MethodRun(0, Method("falls", "for a test", memory=None, build=make), {}), 0))
    assert [event.text for event in seen if isinstance(event, Note)] == [
        "Fold 1, falls: training failed for 1 users; they are measured without a stack."
    ]


def test_an_answer_is_stored_as_decided_with_the_prior(field: EvalContext) -> None:
    number, labels = begun(field.reg, field.request), TASK.labels

    def make(bench: Any, people: Any, settings: Any) -> list[UserModel]:
        return [UserModel(prior=FixedPrior(tuple(1000.0 * (label == labels[7]) for label in labels))) for _ in people]

    list(run_method(field, number, MethodRun(0, Method("sure", "for a test", memory=None, build=make), {}), 0))
    assert {p.answer for p in field.reg.evaluations.predictions.load_predictions(number)} == {labels[7]}


def test_an_answer_of_a_personal_method_is_asked_of_the_models_of_the_other_users(trial: Trial) -> None:
    for method in ("mta", "mta-recipe"):
        for fold in (0, 1):
            (group,) = trial.plan.groups[fold]
            for p in of(trial, method, fold):
                assert p.whose is not None
                own, *others = unpack_logliks(p.whose)
                assert own == pytest.approx(gold_loglik(scores(p), TASK.labels, p.gold), abs=1e-4)
                assert len(others) == len(group) - 1 and all(math.isfinite(value) for value in others)
    recipes = {p.query_id: unpack_logliks(p.whose or b"") for p in of(trial, "mta-recipe")}
    assert any(len(set(values)) > 1 for values in recipes.values())
    assert all(p.whose is None for name in ("pooled-rag", "permuted-recipes", "majority") for p in of(trial, name))
    entries, rivals = trial.result["ladder"]["whose"][:2], trial.result["ladder"]["whose"][2:]
    assert [one["step"] for one in entries] == ["fused", "adapted"], "other methods follow"
    assert {one["step"] for one in rivals} <= trial.result["methods"].keys()
    assert all((one["questions"], one["users"]) == (24, 12) and one["chance"] == pytest.approx(4) for one in entries)
    kept = [unpack_logliks(p.whose or b"") for fold in (0, 1) for p in of(trial, "mta", fold)]
    alone, level = (sum(own > max(others) + by for own, *others in kept) for by in (2e-6, -2e-6))
    assert alone <= entries[1]["first"] <= level and alone < level, "ties count in part"


@pytest.mark.parametrize("count", [0, 2])
def test_so_many_others_are_asked_and_the_nearest_in_topic(field: EvalContext, count: int) -> None:
    field.request = replace(field.request, options=replace(field.request.options, others=count))
    number, own = begun(field.reg, field.request), column("mta-recipe")
    cost = {line.name: line.value for line in cells.cost_of_answers(field.reg, field.request, field.design, [own])}
    assert cost.get("whose is it") == (f"{12 * 3} scorings of golds under other users' models" if count else None)
    list(run_method(field, number, own, 0))
    rows = field.reg.evaluations.predictions.load_predictions(number)
    asked = [unpack_logliks(p.whose) for p in rows if p.whose is not None]
    assert len(rows) == 12 and [len(one) for one in asked] == [1 + count] * (12 if count else 0)
    for group in field.design.groups[0]:
        for user, others in group.items():
            films = {one: field.design.shots[one][0].input.rpartition(" ")[2] for one in group}
            alike = [other for other in others if films[other] == films[user]]
            assert list(others[: len(alike)]) == alike and user not in others


def test_with_every_memory_it_is_asked_whose_an_answer_is(field: EvalContext) -> None:
    number = begun(field.reg, field.request)
    for name in ("mta-recipe+off", "mta-recipe+habit"):
        method = find_method(name)
        settings = {**method.default_settings, **method.version_settings}
        list(run_method(field, number, MethodRun(0, method, settings), 0))
    rows = field.reg.evaluations.predictions.load_predictions(number)
    assert {p.method: p.whose is None for p in rows} == {"mta-recipe+off": False, "mta-recipe+habit": False}
