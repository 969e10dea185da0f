"""Cells and predictions: what goes in comes out, by kind; a cell made again replaces itself whole."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mta_cli.errors import IntegrityFault
from store.registry import Registry
from store.tables.predictions import EvalCell, Prediction, UserPrediction
from tests.store.making import person

SETTINGS: dict[str, Any] = {"steps": 10, "learning_rate": 2e-3, "placement": "late"}


@pytest.fixture
def number(reg: Registry) -> int:
    for name in ("alice", "bob"):
        person(reg, name, "a")
    return reg.evaluations.get_or_create_evaluation("k", "free", {}, [(0, 1, "test"), (1, 2, "test")]).id


def cell(user: int = 1, *, fold: int = 0, method: str = "stack", settings: Mapping[str, Any] = SETTINGS) -> EvalCell:
    return EvalCell(fold, method, settings, user, 77, 0.25)


def said(user: int = 1, query: int = 1, method: str = "stack", words: str = "w") -> Prediction:
    scores = struct.pack("<2f", -0.5, -1.25)
    return Prediction(user, query, method, f"prompt {words}", f"answer {words}", words, -1.5, 40, 0.125, 3, scores)


def test_what_goes_in_comes_out(reg: Registry, number: int) -> None:
    cells = reg.evaluations.predictions
    plain = Prediction(2, 5, "stack", "", "text", "gold", None, 0, 0.0)
    cells.save_cells(
        number, [(cell(1), [said(query=2), said(query=1)]), (cell(2), [plain]), (replace(cell(2), fold=1), [])]
    )
    assert cells.finished_cells(number, 0, "stack", SETTINGS) == {1: cell(1), 2: cell(2)}
    assert cells.finished_cells(number, 1, "stack", SETTINGS) == {2: cell(2, fold=1)}
    found = cells.load_predictions(number, fold=0, method="stack", settings=SETTINGS)
    assert found == [said(query=1), said(query=2), plain]
    assert cells.load_predictions(number) == [said(query=2), said(query=1), plain]
    assert cells.load_predictions(number, fold=1, method="stack", settings=SETTINGS) == []


@pytest.mark.parametrize(
    "other", [{"fold": 1}, {"method": "mta"}, {"settings": {**SETTINGS, "steps": 11}}, {"settings": {}}]
)
def test_cells_of_another_kind_are_others(reg: Registry, number: int, other: dict[str, Any]) -> None:
    cells, kind = reg.evaluations.predictions, {"fold": 0, "method": "stack", "settings": SETTINGS, **other}
    cells.save_cells(number, [(cell(), [said()])])
    assert cells.finished_cells(number, **kind) == {} and cells.load_predictions(number, **kind) == []
    cells.save_cells(number, [(cell(**other), [said(method=kind["method"], words="other")])])
    assert [one.gold for one in cells.load_predictions(number, **kind)] == ["other"]
    assert [one.gold for one in cells.load_predictions(number, fold=0, method="stack", settings=SETTINGS)] == ["w"]


def test_the_order_of_settings_does_not_matter(reg: Registry, number: int) -> None:
    reg.evaluations.predictions.save_cells(number, [(cell(), [])])
    backwards = dict(reversed(SETTINGS.items()))
    assert set(reg.evaluations.predictions.finished_cells(number, 0, "stack", backwards)) == {1}


def test_a_cell_made_again_leaves_none_of_its_old_answers(reg: Registry, number: int) -> None:
    cells = reg.evaluations.predictions
    cells.save_cells(number, [(cell(), [said(query=1), said(query=2)]), (cell(2), [said(2)])])
    cells.save_cells(number, [(replace(cell(), bytes=5), [said(query=2, words="new")])])
    assert cells.finished_cells(number, 0, "stack", SETTINGS)[1].bytes == 5
    assert cells.load_predictions(number) == [said(2), said(query=2, words="new")]
    assert reg.count_rows()["predictions"] == 2 and reg.count_rows()["cells"] == 2 and reg.check_integrity() == []


def test_all_cells_are_stored_or_none(reg: Registry, number: int) -> None:
    with pytest.raises(IntegrityFault):
        reg.evaluations.predictions.save_cells(number, [(cell(1), [said()]), (cell(99), [said(99)])])
    with pytest.raises(IntegrityFault):
        reg.evaluations.predictions.save_cells(99, [(cell(1), [said()])])
    with pytest.raises(IntegrityFault):
        reg.evaluations.predictions.save_cells(number, [(cell(1), [said(99)])])
    assert reg.count_rows()["cells"] == reg.count_rows()["predictions"] == 0


def test_methods_come_in_the_order_of_their_first_answers(reg: Registry, number: int) -> None:
    for method, user in (("mta", 1), ("base", 1), ("mta", 2), ("oppu", 2)):
        reg.evaluations.predictions.save_cells(number, [(cell(user, method=method), [said(user, method=method)])])
    assert reg.evaluations.predictions.answered_methods(number) == ["mta", "base", "oppu"]
    assert reg.evaluations.predictions.answered_methods(number + 1) == []


def test_a_persons_own_answers_are_those_of_the_fold_in_which_they_were_tested(reg: Registry, number: int) -> None:
    cells, kept = reg.evaluations.predictions, replace(cell(2), fold=1)
    cells.save_cells(number, [(cell(1), [said(1)]), (cell(2), [said(2, words="tried")]), (kept, [said(2), said(2, 3)])])
    own = UserPrediction("stack", 1, SETTINGS, 77, "answer w", "w")
    assert cells.user_predictions(number, 2) == [own, own] and cells.user_predictions(number, 1) == [
        replace(own, fold=0)
    ]
    assert cells.user_predictions(number, 3) == [] and cells.user_predictions(99, 1) == []


def test_the_newest_evaluation_of_somebody_is_one_in_which_they_were_tested(reg: Registry, number: int) -> None:
    cells = reg.evaluations.predictions
    assert cells.latest_evaluation_of_user(1, "free") is None
    cells.save_cells(number, [(cell(1), [said(1)])])
    later = reg.evaluations.get_or_create_evaluation("l", "free", {}, [(0, 1, "tuning"), (0, 2, "test")]).id
    cells.save_cells(later, [(cell(1), [said(1)])])
    other = reg.evaluations.add_evaluation("other", None, {}, {})
    cells.add_predictions(other, [said(1)])
    assert cells.latest_evaluation_of_user(1, "free") == number and cells.latest_evaluation_of_user(1, "other") == other
    assert cells.user_predictions(other, 1) == [UserPrediction("stack", None, {}, None, "answer w", "w")]
