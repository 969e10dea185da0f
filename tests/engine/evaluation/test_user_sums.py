"""Sums by user give every metric, against independent computations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.evaluation.user_sums import UserSums, add_user_sums, sum_by_user
from tests.metrics_by_hand import score

LABELS = ("a", "b", "c")
SCORES = ("1", "2", "3", "4", "5")
USERS = st.integers(1, 4)


def tallied(metric: str, labels: Sequence[str], rows: Sequence[tuple[int, str, str]]) -> UserSums:
    """The tally of (user, answer, gold), without likelihoods."""
    users, answers, golds = zip(*rows, strict=True)
    return sum_by_user(metric, labels, users, answers, golds, [None] * len(rows))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(USERS, st.sampled_from(["a", "b", " c", "d", ""]), st.sampled_from("abc")), min_size=1))
def test_labels_as_scikit_learn_counts_them(rows: list[tuple[int, str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    answers, golds = [answer.strip() for _, answer, _ in rows], [gold for _, _, gold in rows]
    f1 = f1_score(golds, answers, labels=list(LABELS), average="macro", zero_division=0)
    expected = {"accuracy": accuracy_score(golds, answers), "macro_f1": f1}
    assert tallied("accuracy", LABELS, rows).metric_values() == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(USERS, st.sampled_from(SCORES), st.sampled_from(SCORES)), min_size=1))
def test_scores_as_scikit_learn_counts_them(rows: list[tuple[int, str, str]]) -> None:
    from sklearn.metrics import mean_absolute_error, root_mean_squared_error

    numbers = [[float(row[side]) for row in rows] for side in (2, 1)]
    expected = {"mae": mean_absolute_error(*numbers), "rmse": root_mean_squared_error(*numbers)}
    assert tallied("mae", SCORES, rows).metric_values() == pytest.approx(expected)


def test_an_answer_that_is_no_number_is_as_wrong_as_can_be() -> None:
    rows = [(1, "?", "2"), (1, " 9\n", "10")]
    assert tallied("mae", ("1", "2", "10"), rows).metric_values() == pytest.approx(
        {"mae": 4.5, "rmse": math.sqrt(32.5)}
    )
    assert tallied("mae", (), [(1, "?", "2")]).metric_values() == {"mae": 3.0, "rmse": 3.0}


def test_texts_as_rouge_score_counts_them() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    rows = [(1, "the cats sat", "a cat sat"), (2, "b a", "a b"), (2, "", "words"), (1, "Same words", "same words")]
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    found = [scorer.score(gold, answer) for _, answer, gold in rows]
    expected = {
        name: sum(one[theirs].fmeasure for one in found) / len(found)
        for name, theirs in (("rouge_1", "rouge1"), ("rouge_l", "rougeL"))
    }
    assert tallied("rouge", (), rows).metric_values() == pytest.approx(expected)


def test_likelihoods_are_averaged_over_queries_where_they_are_known() -> None:
    counted = sum_by_user("rouge", (), [1, 2, 2], ["x"] * 3, ["x"] * 3, [-1.0, -2.0, -6.0])
    assert counted.metric_values() == pytest.approx({"rouge_1": 1.0, "rouge_l": 1.0, "gold_loglik": -3.0})
    assert "gold_loglik" not in tallied("rouge", (), [(1, "x", "x")]).metric_values()


@pytest.mark.parametrize(
    ("metric", "labels", "answers"),
    [("accuracy", LABELS, [*"abadc"]), ("mae", SCORES, [*"12x45"]), ("rouge", (), [*"abcde"])],
)
def test_weights_of_users_are_users_taken_so_often(metric: str, labels: tuple[str, ...], answers: list[str]) -> None:
    users, golds = [7, 3, 7, 5, 3], list("abacb" if metric != "mae" else "32145")
    counted = tallied(metric, labels, list(zip(users, answers, golds, strict=True)))
    assert counted.users == (3, 5, 7)
    weights = np.array([[2, 0, 1], [0, 3, 0], [1, 1, 1]])
    drawn = counted.metrics_from_sums(weights @ counted.sums)
    for row, own in enumerate(weights):
        times = dict(zip(counted.users, own, strict=True))
        kept = [i for i, user in enumerate(users) for _ in range(times[user])]
        expected = score(metric, [answers[i] for i in kept], [golds[i] for i in kept], labels)
        assert {name: values[row] for name, values in drawn.items()} == pytest.approx(expected)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(6)))
def test_the_order_of_queries_does_not_matter(order: list[int]) -> None:
    rows = [(1, "a", "a"), (2, "b", "a"), (1, "c", "b"), (3, "a", "c"), (3, "b", "b"), (3, "x", "a")]
    first, again = tallied("accuracy", LABELS, rows), tallied("accuracy", LABELS, [rows[i] for i in order])
    assert (again.users, again.golds) == (first.users, first.golds)
    np.testing.assert_array_equal(again.sums, first.sums)


@pytest.mark.parametrize(
    ("metric", "labels", "golds", "logliks", "reason"),
    [
        ("bleu", (), ["a", "b"], [None, None], "no metric 'bleu'"),
        ("accuracy", (), ["a", "b"], [None, None], "needs labels"),
        ("accuracy", LABELS, ["a"], [None, None], "1 golds"),
        ("mae", SCORES, ["1", "b"], [None, None], "not a finite number"),
        ("rouge", (), ["a", "b"], [-1.0, None], "finite likelihood"),
        ("rouge", (), ["a", "b"], [-1.0, -math.inf], "finite likelihood"),
    ],
)
def test_what_cannot_be_added_up_is_refused(
    metric: str, labels: tuple[str, ...], golds: list[str], logliks: list[float | None], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        sum_by_user(metric, labels, [1, 1], ["1", "2"], golds, logliks)


def test_nothing_cannot_be_added_up() -> None:
    with pytest.raises(ValueError, match="0 users"):
        sum_by_user("rouge", (), [], [], [], [])


def test_the_same_queries_on_two_occasions_are_one_persons_each() -> None:
    first = tallied("accuracy", LABELS, [(1, "a", "a"), (1, "b", "a"), (2, "c", "b")])
    again = tallied("accuracy", LABELS, [(2, "b", "b"), (1, "a", "a"), (1, "a", "a")])
    both = add_user_sums([first, again])
    assert (both.users, both.golds) == (first.users, first.golds)
    np.testing.assert_array_equal(both.sums, first.sums + again.sums)
    assert both.metric_values()["accuracy"] == pytest.approx((1 / 3 + 1) / 2)


def test_what_does_not_belong_together_is_not_joined() -> None:
    first = tallied("accuracy", LABELS, [(1, "a", "a"), (2, "a", "b")])
    with pytest.raises(ValueError, match="no sums to add"):
        add_user_sums([])
    for others in ([(1, "a", "a"), (3, "a", "b")], [(1, "a", "a"), (2, "a", "c")]):
        with pytest.raises(ValueError, match="different users or queries"):
            add_user_sums([first, tallied("accuracy", LABELS, others)])
    nameless = [
        replace(one, golds=()) for one in (first, tallied("accuracy", LABELS, [*[(1, "a", "a")] * 2, (2, "a", "b")]))
    ]
    with pytest.raises(ValueError, match="different users or queries"):
        add_user_sums(nameless)
    with pytest.raises(ValueError, match="different tasks"):
        add_user_sums([first, tallied("accuracy", (*LABELS, "d"), [(1, "a", "a"), (2, "a", "b")])])
