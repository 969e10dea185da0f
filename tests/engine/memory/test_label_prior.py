"""Decisions and habits, against plain computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.memory.label_prior import (
    add_label_prior,
    decide_label,
    label_rates,
    user_label_prior,
)
from tests.engine.memory.fixed_prior import FixedPrior

LABELS = ("a", "b", "c")
SCORES = ("1", "2", "3", "4", "5")


def test_the_likeliest_label_is_the_answer() -> None:
    assert decide_label(np.log([0.2, 0.5, 0.3]), LABELS, "accuracy") == 1
    assert decide_label(np.log([0.4, 0.2, 0.4]), LABELS, "accuracy") == 0
    with pytest.raises(ValueError, match="rouge"):
        decide_label([0.0], ("a",), "rouge")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=5), st.permutations(SCORES))
def test_the_median_has_the_least_expected_error(weights: list[int], labels: list[str]) -> None:
    shares = np.array(weights) / sum(weights)
    numbers = np.array([float(label) for label in labels])
    errors = [float((shares * np.abs(numbers - number)).sum()) for number in numbers]
    least = [place for place, error in enumerate(errors) if error <= min(errors) + 1e-9]
    assert decide_label(np.log(shares), labels, "mae") == min(least, key=lambda place: numbers[place])


def test_a_label_that_reaches_one_half_is_enough() -> None:
    assert decide_label(np.log([0.1, 0.2, 0.2, 0.3, 0.2]), SCORES, "mae") == 2
    assert decide_label(np.log([0.5, 0.5]), ("10", "9"), "mae") == 1
    assert decide_label([0.0, -math.inf], ("1", "5"), "mae") == 0


def test_rates_are_smoothed_shares() -> None:
    outputs = ["a", " b\n", "b", "other"]
    assert label_rates(outputs, LABELS) == pytest.approx((2 / 6, 3 / 6, 1 / 6))
    assert label_rates([], LABELS) == pytest.approx((1 / 3,) * 3)


def test_a_habit_is_the_log_of_a_rate_over_everybodys() -> None:
    rates = (0.5, 0.3, 0.2)
    found = user_label_prior(["b", "b ", "a", "other"], LABELS, rates, strength=2.0)
    mine = [(1 + 1.0) / 5, (2 + 0.6) / 5, 0.4 / 5]
    assert found == pytest.approx([math.log(own / rate) for own, rate in zip(mine, rates, strict=True)])
    assert sum(rate * math.exp(value) for rate, value in zip(rates, found, strict=True)) == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=3), st.floats(0.01, 100))
def test_without_shots_there_is_no_habit(rates: list[float], strength: float) -> None:
    assert user_label_prior([], LABELS, rates, strength) == (0.0, 0.0, 0.0)
    assert user_label_prior(["other"], LABELS, rates, strength) == (0.0, 0.0, 0.0)


def test_a_label_that_nobody_gives_is_not_infinitely_unlikely() -> None:
    found = user_label_prior(["c", "a"], LABELS, (0.7, 0.3, 0.0), strength=1.0)
    assert all(map(math.isfinite, found))
    assert found[2] == max(found)


def test_a_stronger_prior_trusts_a_person_less() -> None:
    weak, strong = (user_label_prior(["a"] * 4, LABELS, (0.2, 0.4, 0.4), strength)[0] for strength in (1.0, 50.0))
    assert weak > strong > 0


def test_habits_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        user_label_prior([], LABELS, (0.2, 0.4, 0.4), 0.0)
    with pytest.raises(ValueError):
        user_label_prior([], LABELS, (0.5, 0.5), 1.0)


def test_a_prior_says_how_much_of_the_model_stands_beside_it() -> None:
    scores, known = (-1.0, -2.0, -4.0), (0.5, 0.0, -0.5)
    assert add_label_prior(scores, None, "a film") == scores
    assert add_label_prior(scores, FixedPrior(known), "a film") == (-0.5, -2.0, -4.5)
    assert add_label_prior(scores, FixedPrior(known, model_weight=0.5), "a film") == (0.0, -1.0, -2.5)
    with pytest.raises(ValueError):
        add_label_prior(scores, FixedPrior(known[:2]), "a film")
