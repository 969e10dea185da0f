"""Evaluations: begun once by key, finished, tuned, and removed with the banks that no other evaluation needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.errors import IntegrityFault, NotFound
from store.records import Bank
from store.registry import Registry
from store.tables.evaluations import TunedSettings
from store.tables.predictions import EvalCell, Prediction
from tests.store.making import BASE, EMBEDDER, bank, person

PLACES = [(0, 1, "bank"), (0, 2, "test"), (1, 1, "test"), (1, 2, "bank")]


@pytest.fixture
def people(reg: Registry) -> list[int]:
    return [person(reg, name, "a") for name in ("alice", "bob")]


def eval_bank(reg: Registry, key: str, anchors: list[int]) -> Bank:
    return bank(reg, anchors, name="eval free", key=key, purpose="eval")


def adapter_files(root: Path) -> int:
    return len(list((root / "adapters").rglob("*.safetensors")))


def test_the_same_key_is_the_same_evaluation(reg: Registry, people: list[int]) -> None:
    first = reg.evaluations.get_or_create_evaluation("k", "free", {"shots": 3}, PLACES)
    assert (first.task, first.key, first.status, first.result, first.bank_id) == ("free", "k", "running", {}, None)
    assert reg.evaluations.fold_members(first.id) == PLACES
    assert reg.evaluations.get_or_create_evaluation("k", "free", {"shots": 3}, PLACES) == first
    assert reg.evaluations.get_or_create_evaluation("k", "free", {"other": 1}, PLACES[:1]) == first
    assert reg.evaluations.fold_members(first.id) == PLACES
    second = reg.evaluations.get_or_create_evaluation("k2", "free", {}, PLACES[:1])
    assert second.id != first.id and [each.id for each in reg.evaluations.all()] == [second.id, first.id]
    assert reg.count_rows()["eval_people"] == 5


def test_the_last_result_stands(reg: Registry, people: list[int]) -> None:
    number = reg.evaluations.get_or_create_evaluation("k", "free", {}, PLACES).id
    for result in ({"users": 1}, {"users": 2}):
        reg.evaluations.finish_evaluation(number, result)
        done = reg.evaluations.get_or_create_evaluation("k", "free", {}, PLACES)
        assert (done.id, done.status, done.result) == (number, "done", result)


def test_evaluations_of_stored_models_have_no_key_and_never_meet(reg: Registry) -> None:
    numbers = [reg.evaluations.add_evaluation("free", None, {}, {"users": 1}) for _ in range(2)]
    assert len(set(numbers)) == 2
    assert [(each.key, each.status) for each in reg.evaluations.all()] == [(None, "done")] * 2


def test_somebody_unknown_begins_nothing(reg: Registry, people: list[int]) -> None:
    with pytest.raises(IntegrityFault):
        reg.evaluations.get_or_create_evaluation("k", "free", {}, [(0, 1, "test"), (0, 99, "bank")])
    with pytest.raises(IntegrityFault):  # one role in a fold
        reg.evaluations.get_or_create_evaluation("k", "free", {}, [(0, 1, "test"), (0, 1, "bank")])
    assert reg.evaluations.all() == [] and reg.count_rows()["eval_people"] == 0


def test_the_bank_of_a_fold(reg: Registry, people: list[int]) -> None:
    number = reg.evaluations.get_or_create_evaluation("k", "free", {}, PLACES).id
    first, second = eval_bank(reg, "1", people), eval_bank(reg, "2", people)
    assert reg.evaluations.fold_banks(number) == {}
    for fold, made in ((1, first), (0, first), (1, second)):
        reg.evaluations.set_fold_bank(number, fold, made.id)
    assert reg.evaluations.fold_banks(number) == {(0, ""): first.id, (1, ""): second.id}


def test_choices_are_replaced(reg: Registry, people: list[int]) -> None:
    number = reg.evaluations.get_or_create_evaluation("k", "free", {}, PLACES).id
    early = TunedSettings(0, "stack", {"steps": 1}, [])
    late = TunedSettings(0, "stack", {"steps": 2}, [{"settings": {"steps": 2}, "gold_loglik": -1.5}])
    other = TunedSettings(1, "stack", {"steps": 3}, [])
    for tuning in (early, other, late):
        reg.evaluations.save_tuning(number, tuning)
    assert reg.evaluations.tunings(number) == [late, other]


def test_removing_takes_answers_banks_and_files_that_nobody_needs(reg: Registry, root: Path, people: list[int]) -> None:
    own, shared, used = eval_bank(reg, "own", people), eval_bank(reg, "shared", people), bank(reg, people)
    first, second = (reg.evaluations.get_or_create_evaluation(key, "free", {}, PLACES).id for key in "ab")
    for number, fold, made in ((first, 0, own), (first, 1, shared), (second, 0, shared)):
        reg.evaluations.set_fold_bank(number, fold, made.id)
    for number in (first, second):
        answer = Prediction(1, 1, "base", "p", "a", "g", None, 3, 0.1)
        reg.evaluations.predictions.save_cells(number, [(EvalCell(0, "base", {}, 1, 0, 0.1), [answer, answer])])
        reg.evaluations.save_tuning(number, TunedSettings(0, "stack", {}, []))
    files = adapter_files(root)
    assert reg.evaluations.remove(first) == {"answers": 2, "banks": 1}
    assert adapter_files(root) == files - 3 and reg.adapters.remove_unreferenced() == []
    assert reg.banks.by_id(shared.id) == shared and reg.banks.all() == [used]
    assert [each.id for each in reg.evaluations.all()] == [second]
    counts = reg.count_rows()
    assert [counts[name] for name in ("eval_people", "eval_banks", "cells", "predictions", "tunings")] == [
        4,
        1,
        1,
        2,
        1,
    ]
    assert reg.evaluations.remove(second) == {"answers": 2, "banks": 1}
    assert reg.banks.all() == [used] and adapter_files(root) == 3 and reg.check_integrity() == []
    with pytest.raises(NotFound, match=f"evaluation {second}"):
        reg.evaluations.remove(second)


def test_a_bank_that_another_evaluation_is_building_stays(reg: Registry, people: list[int]) -> None:
    done, running = (reg.evaluations.get_or_create_evaluation(key, "free", {}, PLACES).id for key in "ab")
    building = reg.banks.get_or_create_bank("eval free", "half", "free", BASE, EMBEDDER, 0, {}, "eval")
    reg.evaluations.set_fold_bank(running, 0, building.id)
    assert reg.evaluations.remove(done) == {"answers": 0, "banks": 0}
    assert reg.banks.by_id(building.id).status == "building"
