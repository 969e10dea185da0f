"""What methods are given: a person's shots and nothing else, and what a fold's people share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mta_cli.engine.memory.knn import Vectors
from mta_cli.engine.memory.label_prior import label_rates
from mta_cli.engine.retrieval.embed import Embedder
from mta_cli.errors import IntegrityFault
from mta_cli.lab.evaluation.context import EvalContext
from mta_cli.lab.methods.catalog import find_method
from mta_cli.pipeline.data.examples import PromptRowBuilder
from mta_cli.pipeline.data.profiles import profile_matrix
from mta_cli.pipeline.user_weights import load_weights
from tests.lab.evaluation.trial import SECRET, Trial, profiles


@pytest.fixture(scope="module")
def field(trial: Trial) -> EvalContext:
    known = trial.reg.evaluations.fold_banks(trial.number)
    banks = {key: trial.reg.banks.by_id(number) for key, number in known.items()}
    return EvalContext(trial.reg, trial.request, trial.plan, banks, profiles(trial.request, trial.plan))


def test_a_damaged_registry_is_named_before_the_first_answer(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.pipeline.models.verify._verified_keys", set())
    monkeypatch.setattr("store.integrity.check.find_structure_faults", lambda root: ["registry.db is damaged"])
    with pytest.raises(IntegrityFault, match="registry"):
        EvalContext(trial.reg, trial.request, trial.plan, {}, {})


def test_no_prompt_of_any_method_shows_more_than_the_shots(trial: Trial, field: EvalContext) -> None:
    """Retrieval over whole histories would find the secret: it shares all the query's words."""
    found = trial.reg.evaluations.predictions.load_predictions(trial.number)
    assert {p.method for p in found} == set(trial.result["methods"]) and len(found) == 24 * len(trial.result["methods"])
    assert not any(SECRET in p.prompt or "dystopia" in p.prompt for p in found)
    assert all(p.prompt.count("Tag:") == 2 for p in found if p.method in ("rag", "mta", "stack", "per-pcs", "prime"))
    assert not any("Tag:" in p.prompt for p in found if p.method in ("base", "pooled"))
    careless = PromptRowBuilder(trial.reg, field.base, trial.request.task, 2)
    (query, *_) = trial.plan.queries[trial.plan.test_users[0]]
    assert SECRET in field.base.tokenizer.decode(careless.query_prompt(query))


def test_methods_learn_from_the_shots_alone(trial: Trial) -> None:
    assert {number for number, _ in trial.given} == set(trial.plan.test_users)
    assert not any(SECRET in texts or "dystopia" in texts for _, texts in trial.given)


def test_people_are_their_shots_in_order(trial: Trial, field: EvalContext) -> None:
    decode = field.base.tokenizer.decode
    users = trial.plan.test_users[::-1]
    people = field.method_users(users)
    assert [person.number for person in people] == users
    for person in people:
        shots = trial.plan.shots[person.number]
        assert person.inputs == tuple(item.input for item in shots) and len(shots) == 3
        assert person.outputs == tuple(item.output for item in shots)
        for place, (item, row) in enumerate(zip(shots, person.rows, strict=True)):
            prompt, answer = (
                decode(list(row.input_ids[: row.answer_start])),
                decode(list(row.input_ids[row.answer_start :])),
            )
            assert answer.startswith(item.output) and prompt.count(item.input) == 1
            shown = [other.id for other in shots if other is not item and f"\n{other.input[:8]}" in prompt]
            assert shown == [other.id for other in shots[:place]], "earlier ones, as far as an item's tokens go"


def test_a_profile_is_that_of_the_shots(trial: Trial) -> None:
    found, embedder = profiles(trial.request, trial.plan), Embedder(trial.request.embedder.path, "cpu")
    assert set(found) == set(trial.plan.shots)
    for user in trial.plan.test_users[:3]:
        total = embedder.embed([f"{item.input}\n{item.output}" for item in trial.plan.shots[user]]).sum(axis=0)
        np.testing.assert_allclose(found[user].numpy(), total / np.linalg.norm(total), atol=1e-5)
        assert found[user].dtype == torch.float32
    ids, whole = profile_matrix(trial.reg, "lamp-2", trial.request.embedder.fingerprint)
    for user, row in zip(ids, whole, strict=True):
        assert float(np.linalg.norm(row - found[user].numpy())) > 1e-3, "the whole history says something else"


def test_the_base_holds_what_a_method_stands_on(trial: Trial, field: EvalContext) -> None:
    weights = {name: value for name, value in field.base.model.named_parameters() if name.endswith("q_proj.weight")}
    bare = {name: value.detach().clone() for name, value in weights.items()}
    for fold in (0, 1, 1, 0):
        field.merge_task_adapter(fold, find_method("pooled"))
        digest = field.banks[fold, ""].task_adapter
        assert digest is not None
        adapter = load_weights(trial.reg, digest, field.base.fingerprint)
        for name, value in weights.items():
            expected = bare[name] + adapter.delta_weight(name.removesuffix(".weight"))
            torch.testing.assert_close(value.detach(), expected)
    field.merge_task_adapter(1, find_method("base"))
    assert all(torch.equal(value, bare[name]) for name, value in weights.items())
    field.merge_task_adapter(0, find_method("mta-published"))


def test_a_bench_is_the_banks_anchors_and_how_its_people_answer(trial: Trial, field: EvalContext) -> None:
    for number, fold in enumerate(trial.plan.folds):
        bench, anchors = field.workbench(number).methods, trial.reg.banks.anchors(field.banks[number, ""].id)
        assert bench.task == trial.request.task and bench.base is field.base and bench.seed == 0
        assert len(bench.anchors) == 2 and tuple(bench.profiles.shape) == (2, 32)
        for anchor, weights, profile in zip(anchors, bench.anchors, bench.profiles, strict=True):
            assert anchor.digest is not None and anchor.user_id is not None
            assert weights.to_bytes({}) == load_weights(trial.reg, anchor.digest, field.base.fingerprint).to_bytes({})
            _, matrix = profile_matrix(trial.reg, "lamp-2", trial.request.embedder.fingerprint, [anchor.user_id])
            np.testing.assert_array_equal(profile.numpy(), matrix[0])
        given = [item.output for user in fold.bank for item in trial.reg.items.recent_items(user, "lamp-2")]
        assert bench.memory.rates == pytest.approx(label_rates(given, trial.request.task.labels)) and sum(
            bench.memory.rates
        ) == pytest.approx(1)
        theirs = [item.output for user in fold.test for item in trial.reg.items.recent_items(user, "lamp-2")]
        assert bench.memory.rates != label_rates([*given, *theirs], trial.request.task.labels)


def test_methods_share_results_only_above_the_same_weights(field: EvalContext) -> None:
    """The evidence of an anchor above the base is another one than above the task adapter."""
    task = field.method_context(0, find_method("mta"))
    assert field.method_context(0, find_method("mta-recipe")) is task
    base = field.method_context(0, find_method("base:evidence:none"))
    assert base.cache is not task.cache and base.anchors is task.anchors
    assert field.method_context(1, find_method("mta")).cache is not task.cache


def test_an_anchor_without_a_profile_is_a_fault_of_the_store(trial: Trial, field: EvalContext) -> None:
    with pytest.raises(InterruptedError), trial.reg.transaction():
        field._benches.clear()
        trial.reg._db.execute_write("DELETE FROM profiles")
        with pytest.raises(IntegrityFault, match=r"Anchors \[\d+, \d+\] of fold 1 have no profile"):
            field.workbench(0)
        raise InterruptedError


def test_prompts_with_and_without_history(field: EvalContext) -> None:
    assert field.examples(True).history_items == 2 and field.examples(False).history_items == 0


def test_who_withholds_consent_is_in_no_rate(trial: Trial, field: EvalContext) -> None:
    anchors = {anchor.user_id for anchor in trial.reg.banks.anchors(field.banks[0, ""].id)}
    bank = trial.plan.folds[0].bank
    somebody = next(user for user in bank if user not in anchors)
    given = [item.output for user in bank if user != somebody for item in trial.reg.items.recent_items(user, "lamp-2")]
    with pytest.raises(InterruptedError), trial.reg.transaction():
        field._benches.clear()
        trial.reg.users.set_can_anchor(somebody, False)
        assert field.workbench(0).methods.memory.rates == pytest.approx(label_rates(given, trial.request.task.labels))
        raise InterruptedError
    field._benches.clear()


def test_times_are_taken_as_if_no_question_had_been_met_but_with_the_embedder_at_hand(
    field: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def embed(texts: Sequence[str]) -> Vectors:
        asked.extend(texts)
        return np.ones((len(texts), 32), np.float32)

    field._benches.clear()
    monkeypatch.setattr(field, "_embedder", embed)
    context = field.workbench(0).methods
    assert context.memory.neighbours is not None
    for anew in (False, False, True, True):
        own = (field.without_cached_states(context) if anew else context).memory.neighbours
        assert own is not None and own.index is context.memory.neighbours.index
        own.embed(["a question"])
    assert asked == ["a question", "", "a question", "", "a question"]
    assert field.without_cached_states(context).cache == {}
