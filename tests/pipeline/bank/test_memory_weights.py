"""Weighing a bank's memory against its model: which items, what is kept, and stopped builds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mta_cli.engine.memory.knn import MixtureWeights, NeighbourIndex, NeighbourKernel
from mta_cli.engine.memory.label_prior import label_rates
from mta_cli.engine.text.tasks import Task
from mta_cli.events import Event, JobProgress
from mta_cli.pipeline.bank import memory_weights
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.memory_weights import LeaveOneOutCase, memory_label_scores, sample_leave_one_out_cases
from mta_cli.pipeline.memory.knn import MIXTURE_WEIGHTS_KEY, load_fitted_neighbours
from mta_cli.pipeline.training.groups import AdapterTraining
from store.records import Bank, Item, NewItem
from store.registry import Registry
from tests.pipeline.town import TASK, bank_request, built, finish, notes


@pytest.fixture(autouse=True)
def few_guessed_items() -> None:
    """As many items are guessed here as in the program; other tests guess fewer."""


def bank_of(reg: Registry) -> Bank:
    bank = reg.banks.latest_ready_bank(TASK.name)
    assert bank is not None
    return bank


def weighed(events: list[Event]) -> list[str]:
    return [text for text in notes(events) if "the label memory" in text]


def test_a_build_says_and_keeps_how_much_neighbours_count(peopled: Registry) -> None:
    result, seen = finish(build_bank(peopled, bank_request()))
    weights = bank_of(peopled).config[MIXTURE_WEIGHTS_KEY]
    assert result[MIXTURE_WEIGHTS_KEY] == weights
    assert f"the model's weight is {weights['model']:.2f}" in weighed(seen)[0]
    assert f"the label memory's {weights['memory']:.2f}" in weighed(seen)[0]
    found = load_fitted_neighbours(peopled, bank_of(peopled), TASK, lambda texts: pytest.fail("nothing is embedded"))
    assert found is not None and found.kernel == NeighbourKernel(**(bank_of(peopled).kernel or {}))
    assert found.weights == MixtureWeights.from_parts(**weights)


def test_a_bank_without_weights_is_weighed_when_it_is_built_again(peopled: Registry) -> None:
    """Until then model and memory count alike."""
    first, bank = built(peopled), bank_of(peopled)
    unweighed = {key: value for key, value in bank.config.items() if key != MIXTURE_WEIGHTS_KEY}
    peopled.banks.set_bank_config(bank.id, unweighed)
    before = load_fitted_neighbours(peopled, bank_of(peopled), TASK, lambda texts: pytest.fail("none is embedded"))
    assert before is not None and before.weights == MixtureWeights(0.5, 0.5, 0.5, 0.5)
    again, seen = finish(build_bank(peopled, bank_request()))
    assert again == first and weighed(seen)
    trained = {event.label for event in seen if isinstance(event, JobProgress) and event.loss is not None}
    assert trained == {"task adapter of half 1", "task adapter of half 2"}
    assert not weighed(finish(build_bank(peopled, bank_request()))[1]), "once is enough"


def test_a_build_stopped_meanwhile_ends_as_an_unbroken_one(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_weights, "ITEMS_PER_STEP", 16)
    job = build_bank(peopled, bank_request())
    assert any(isinstance(event, JobProgress) and event.label == TASK.name and event.done == 32 for event in job)
    job.close()
    (bank,) = peopled.banks.all()
    assert bank.status == "building" and MIXTURE_WEIGHTS_KEY not in bank.config
    stopped = finish(build_bank(peopled, bank_request()))[0]
    whole = finish(build_bank(peopled, replace(bank_request(), name="whole")))[0]
    assert stopped[MIXTURE_WEIGHTS_KEY] == whole[MIXTURE_WEIGHTS_KEY] and bank_of(peopled).status == "ready"


def test_who_is_asked_is_not_in_the_adapter_that_answers(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, asked = list[set[int]](), list[set[int]]()
    train, score = memory_weights.task_adapter_training, memory_weights._model_label_scores

    def training(*given: Any) -> AdapterTraining:
        trained.append({each.user.id for each in given[1]})
        return train(*given)

    def scores(*given: Any) -> Any:
        asked.append({one.item.user_id for one in given[1]})
        return score(*given)

    monkeypatch.setattr(memory_weights, "task_adapter_training", training)
    monkeypatch.setattr(memory_weights, "_model_label_scores", scores)
    result, _ = finish(build_bank(peopled, bank_request()))
    assert len(trained) == 2 and not trained[0] & trained[1]
    assert asked[:2] == trained[::-1], "each half is asked of the other's adapter"
    assert asked[2:] == [trained[0] | trained[1]] * 2, "the ladder asks all of the base, without and with examples"
    pool = {each.id for each, count in peopled.users.users_with_items(TASK.name) if each.can_anchor and count >= 5}
    assert trained[0] | trained[1] == pool
    kept = {row.digest for row in peopled.adapters.all() if row.kind == "task"}
    assert kept == {result["task_adapter"]}, "the others are dropped"


def test_other_anchors_of_the_same_users_have_the_same_weights(peopled: Registry) -> None:
    first, _ = finish(build_bank(peopled, bank_request()))
    other, seen = finish(build_bank(peopled, bank_request(anchors=2)))
    assert other["version"] == 2 and other[MIXTURE_WEIGHTS_KEY] == first[MIXTURE_WEIGHTS_KEY] and not weighed(seen)
    assert not [e for e in seen if isinstance(e, JobProgress) and e.label.startswith("task adapter of half")]


def test_a_bank_may_be_weighed_by_its_own_task_adapter(peopled: Registry) -> None:
    usual, _ = finish(build_bank(peopled, bank_request()))
    cheap, seen = finish(build_bank(peopled, bank_request(held_out_weights=False)))
    assert cheap["version"] == 2 and weighed(seen), "another option makes another bank"
    assert not [e for e in seen if isinstance(e, JobProgress) and e.label.startswith("task adapter of half")]
    assert cheap[MIXTURE_WEIGHTS_KEY] != usual[MIXTURE_WEIGHTS_KEY] and cheap["task_adapter"] == usual["task_adapter"]


def test_nothing_is_weighed_for_a_task_of_texts(peopled: Registry) -> None:
    result, seen = finish(build_bank(peopled, replace(bank_request(), task=texts(peopled))))
    assert result[MIXTURE_WEIGHTS_KEY] is None and not weighed(seen)


def texts(reg: Registry) -> Task:
    """A task of texts for which every user has items."""
    for n in range(9):
        user = reg.users.get(f"user{n}").id
        reg.items.append_items(user, [NewItem(f"w{k}", "words", f"line {k} of {n}", "some words") for k in range(6)])
    return replace(TASK, name="words", kind="text", labels=(), metric="rouge")


def items(*counts: int) -> list[Item]:
    numbers = iter(range(10_000))
    owners = [user for user, count in enumerate(counts) for _ in range(count)]
    return [Item(next(numbers), user, "k", "t", "in", "out", None) for user in owners]


@pytest.mark.parametrize("counts", [(1,), (2, 9, 300), (7,) * 40, (3,) * 700])
def test_lessons_are_of_all_people_evenly_and_never_show_what_they_ask(counts: tuple[int, ...]) -> None:
    found = sample_leave_one_out_cases(items(*counts), 0)
    assert 0 < len(found) <= memory_weights.MAX_GUESSED_ITEMS and found == sample_leave_one_out_cases(items(*counts), 0)
    each = Counter(one.item.user_id for one in found)
    assert len(each) == min(len(counts), memory_weights.MAX_GUESSED_ITEMS)
    most = max(1, memory_weights.MAX_GUESSED_ITEMS // len(each))
    assert all(count == min(most, counts[user]) for user, count in each.items())
    for one in found:
        assert one.item not in one.shots and len(set(one.shots)) == len(one.shots)
        assert len(one.shots) == min(5, counts[one.item.user_id] - 1)
        assert {shot.user_id for shot in one.shots} <= {one.item.user_id}


def test_a_case_is_scored_without_later_items_and_without_its_users_own() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    times = tuple(f"20{n:02d}" for n in range(12))
    labels, users = np.arange(12) % len(TASK.labels), np.arange(12) % 4
    index = NeighbourIndex(vectors, labels, users, np.array(label_rates((), TASK.labels)), times)
    shot = Item(1, 2, "k", TASK.name, "in", TASK.labels[0], None)
    case = LeaveOneOutCase(Item(6, 2, "k", TASK.name, "in", TASK.labels[6], "2006"), (shot,))

    def scores(known: NeighbourIndex) -> list[float]:
        kernel = NeighbourKernel(4.0, 1.0, 1.0, 0.5)
        scored: list[float] = memory_label_scores(known, kernel, TASK, [case], np.array([6]))[0].tolist()
        return scored

    later_or_own = (np.arange(12) > 6) | (users == 2)
    changed = replace(index, labels=np.where(later_or_own, (labels + 1) % len(TASK.labels), labels))
    assert scores(changed) == scores(index)
    earlier = replace(index, labels=np.where(np.arange(12) == 1, 5, labels))
    assert scores(earlier) != scores(index)
