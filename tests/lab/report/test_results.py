"""What is read out of result documents."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mta_cli.engine.methods.method import MEMORY_SETTINGS
from mta_cli.lab.report import results
from tests.pipeline.documents import FEW, document, hostile


def seeds(groups: list[list[results.Document]]) -> list[list[tuple[int, int]]]:
    return [[(one["seed"], one["evaluation"]) for one in group] for group in groups]


def test_the_main_metric_is_first_and_the_likelihood_last() -> None:
    made = document()
    made["methods"]["mta"] = {"gold_loglik": {}, "own": {}, **made["methods"]["mta"]}
    assert results.metrics(made) == ["accuracy", "own", "macro_f1", "gold_loglik"]


@pytest.mark.parametrize(
    ("metric", "order"), [("accuracy", ["b", "a", "c"]), ("mae", ["a", "b", "c"]), ("rmse", ["a", "b", "c"])]
)
def test_ranks_know_which_way_is_better(metric: str, order: list[str]) -> None:
    scores = {"a": {"value": 0.3}, "b": {"value": 0.7}, "c": {"value": None}}
    made = {"metric": metric, "methods": {method: {metric: found} for method, found in scores.items()}}
    assert results.rank_methods(made) == order
    assert results.best_methods(made, metric) == {order[0]}


def test_those_that_share_the_best_value_are_all_the_best() -> None:
    made = document({"mta": 0.5, "base": 0.5, "oppu": 0.4})
    assert results.best_methods(made, "accuracy") == {"mta", "base"}
    assert results.rank_methods(made) == ["mta", "base", "oppu"]
    assert results.best_methods(made, "unheard") == frozenset()


@pytest.mark.parametrize(
    ("metric", "low", "high", "said"),
    [
        ("accuracy", 0.01, 0.2, "better"),
        ("accuracy", -0.2, -0.01, "worse"),
        ("accuracy", -0.1, 0.1, "not shown"),
        ("accuracy", 0.0, 0.1, "not shown"),
        ("mae", 0.01, 0.2, "worse"),
        ("mae", -0.2, -0.01, "better"),
        ("rmse", -0.2, -0.1, "better"),
        ("gold_loglik", -0.2, -0.1, "worse"),
        ("accuracy", None, 0.1, "not shown"),
        ("accuracy", math.nan, 0.1, "not shown"),
    ],
)
def test_a_difference_is_told_where_its_interval_excludes_zero(metric: str, low: Any, high: Any, said: str) -> None:
    assert results.difference_verdict({"metric": metric, "low": low, "high": high}) == said
    assert results.difference_verdict({"metric": metric, "low": low, "high": high, "p": 0.049}) == said
    assert results.difference_verdict({"metric": metric, "low": low, "high": high, "p": 0.051}) == "not shown"


def test_differences_come_in_the_order_of_the_methods() -> None:
    assert [row["b"] for row in results.differences(document(), "macro_f1")] == ["oppu", "stack", "base"]


def test_seeds_of_one_design_are_a_group() -> None:
    made = [document(seed=n, evaluation=n + 1) for n in (2, 0, 1)]
    other = document(seed=0, shots=10, evaluation=4)
    assert seeds(results.group_seeds([*made, other])) == [[(0, 1), (1, 2), (2, 3)], [(0, 4)]]


def test_a_seed_that_comes_again_starts_another_group() -> None:
    made = [document(seed=seed, evaluation=n) for n, seed in enumerate((0, 0, 1))]
    assert seeds(results.group_seeds(made)) == [[(0, 0), (1, 2)], [(0, 1)]]


def test_documents_of_the_same_settings_go_together() -> None:
    own = {"mta": {"steps": 99}}
    made = [document(), document(settings=own, evaluation=2), document(settings=own, seed=1, evaluation=3)]
    assert seeds(results.group_seeds(made)) == [[(0, 1)], [(0, 2), (1, 3)]]


def test_habits_settings_are_used_beside_neighbours_only_where_a_bank_may_have_none() -> None:
    used, changed = {"steps": 9, **dict.fromkeys(MEMORY_SETTINGS["habit"], 0.5)}, {"prior_weight": 0.25}
    habit = [document(settings={"mta": own}) for own in (used, used | changed)]
    both = [document(settings={"mta": own | {"neighbour_weight": 1.0}}) for own in (used, used | changed)]
    assert results.used_settings(both[0], "mta") == [{"steps": 9, "neighbour_weight": 1.0}]
    assert results.same_settings(both) and not results.same_settings(habit)
    assert not results.same_settings([{**one, "bank": "tags v1"} for one in both])
    assert results.used_settings(document(), "other") == [{}]


def test_a_series_has_one_document_for_each_amount() -> None:
    made = [document(shots=n) for n in (10, 2, 5)]
    assert [[one["shots"] for one in group] for group in results.find_series(made, "shots")] == [[2, 5, 10]]
    assert results.find_series(made, "anchors") == []
    assert results.find_series([document(), document(shots=10, seed=1)], "shots") == []


def test_a_series_is_split_by_settings_only_where_it_must_be() -> None:
    own = {"mta": {"steps": 99}}
    tuned = [document(shots=2), document(shots=5, settings=own)]
    assert [len(group) for group in results.find_series(tuned, "shots")] == [2]
    both = [document(shots=n, settings=s, evaluation=n) for s in ({}, own) for n in (2, 5)]
    assert [[one["settings"] for one in group] for group in results.find_series(both, "shots")] == [
        [{}, {}],
        [own, own],
    ]


def test_of_two_that_are_alike_the_later_is_taken() -> None:
    made = [document(shots=2, evaluation=8), document(shots=2, evaluation=7), document(shots=5, evaluation=3)]
    assert [[one["evaluation"] for one in group] for group in results.find_series(made, "shots")] == [[8, 3]]


def test_a_file_name_says_what_tells_a_document_apart() -> None:
    one, two = document(), document(seed=1, placement="upper")
    assert results.file_stem(one, [one]) == "lamp-2-shots5"
    assert results.file_stem(two, [one, two]) == "lamp-2-shots5-upper-seed1"
    assert results.file_stem(one, [one, document(task="lamp-3", shots=9)]) == "lamp-2-shots5"
    assert results.file_stem(one, [one, document(shots=9)], across="shots") == "lamp-2"


@pytest.mark.parametrize("value", ["../../etc", "", "ÄÖ", "a" * 300, "CON.", "a/b\\c\x00", hostile()["task"]])
def test_a_slug_is_never_a_path(value: str) -> None:
    made = results.slug(value)
    assert 0 < len(made) <= 60 and set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_the_same_document_is_taken_once() -> None:
    assert len(results.unique_documents([document(), document(), document(FEW, seed=1)])) == 2


@pytest.mark.parametrize(("metric", "front"), [("accuracy", ["b", "d", "e"]), ("mae", ["a"])])
def test_the_front_holds_what_nothing_as_small_equals(metric: str, front: list[str]) -> None:
    values = {"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.4, "e": 0.5, "f": 0.5}
    sizes = {"a": 0.0, "b": 0.0, "c": 10.0, "d": 24.0, "e": 600.0, "f": 900.0}
    made = document(values, metric=metric)
    assert results.pareto_front(made, sizes) == front
    assert results.pareto_front(made, {}) == []
