"""Temperatures, decisions and habits, against plain computation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.calibration import decide, habit, label_rates, log_probabilities, temperature

LABELS = ("a", "b", "c")
SCORES = ("1", "2", "3", "4", "5")


def drawn(scores: np.ndarray, seed: int = 0) -> list[int]:
    """A gold for each row of scores, drawn from their softmax."""
    rng = np.random.default_rng(seed)
    powers = np.exp(scores)
    return [int(rng.choice(len(row), p=row / row.sum())) for row in powers]


def loss(scores: np.ndarray, golds: list[int], heat: float) -> float:
    """Minus the mean log-probability of the golds, in plain arithmetic."""
    total = 0.0
    for row, gold in zip(scores, golds, strict=True):
        total -= row[gold] / heat - math.log(sum(math.exp(value / heat) for value in row))
    return total / len(golds)


@pytest.mark.parametrize("heat", [0.5, 1.0, 4.0])
def test_the_temperature_that_made_the_golds_is_found(heat: float) -> None:
    scores = np.random.default_rng(1).normal(size=(4000, 4))
    assert temperature(scores * heat, drawn(scores)) == pytest.approx(heat, rel=0.1)


def test_no_other_temperature_is_better() -> None:
    scores = np.random.default_rng(2).normal(size=(60, 3)) * 2
    golds = drawn(scores / 3)
    best = temperature(scores, golds)
    grid = np.exp(np.linspace(-3, 3, 61))
    assert loss(scores, golds, best) <= min(loss(scores, golds, heat) for heat in grid) + 1e-9


def test_temperatures_stay_within_bounds() -> None:
    scores = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert temperature(scores, [0, 0]) == pytest.approx(math.exp(-3), rel=1e-3)
    assert temperature(scores, [1, 1]) == pytest.approx(math.exp(3), rel=1e-3)
    assert temperature([], []) == 1.0


@pytest.mark.parametrize("golds", [[0], [0, 2], [-1, 0]])
def test_golds_that_do_not_fit_the_scores_are_refused(golds: list[int]) -> None:
    with pytest.raises(ValueError, match="golds"):
        temperature([[0.0, 1.0], [1.0, 0.0]], golds)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-900, 0), min_size=2, max_size=6), st.floats(0.1, 10), st.floats(-50, 50))
def test_probabilities_sum_to_one_whatever_is_added(scores: list[float], heat: float, more: float) -> None:
    found = log_probabilities([scores], heat)
    assert np.exp(found).sum() == pytest.approx(1)
    assert log_probabilities(np.add(scores, more), heat) == pytest.approx(found[0], abs=1e-6)


def test_a_temperature_divides_log_odds() -> None:
    low, high = log_probabilities([0.0, 3.0], 2.0)
    assert high - low == pytest.approx(1.5)


def test_the_likeliest_label_is_the_answer() -> None:
    assert decide(np.log([0.2, 0.5, 0.3]), LABELS, "accuracy") == 1
    assert decide(np.log([0.4, 0.2, 0.4]), LABELS, "accuracy") == 0
    with pytest.raises(ValueError, match="rouge"):
        decide([0.0], ("a",), "rouge")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 9), min_size=5, max_size=5), st.permutations(SCORES))
def test_the_median_has_the_least_expected_error(weights: list[int], labels: list[str]) -> None:
    shares = np.array(weights) / sum(weights)
    numbers = np.array([float(label) for label in labels])
    errors = [float((shares * np.abs(numbers - number)).sum()) for number in numbers]
    least = [place for place, error in enumerate(errors) if error <= min(errors) + 1e-9]
    assert decide(np.log(shares), labels, "mae") == min(least, key=lambda place: numbers[place])


def test_a_label_that_reaches_one_half_is_enough() -> None:
    assert decide(np.log([0.1, 0.2, 0.2, 0.3, 0.2]), SCORES, "mae") == 2
    assert decide(np.log([0.5, 0.5]), ("10", "9"), "mae") == 1
    assert decide([0.0, -math.inf], ("1", "5"), "mae") == 0


def test_rates_are_smoothed_shares() -> None:
    outputs = ["a", " b\n", "b", "other"]
    assert label_rates(outputs, LABELS) == pytest.approx((2 / 6, 3 / 6, 1 / 6))
    assert label_rates(outputs, LABELS, smoothing=0) == pytest.approx((1 / 3, 2 / 3, 0))
    assert label_rates([], LABELS, smoothing=0) == pytest.approx((1 / 3,) * 3)


def test_a_habit_is_the_log_of_a_rate_over_everybodys() -> None:
    rates = (0.5, 0.3, 0.2)
    found = habit(["b", "b ", "a", "other"], LABELS, rates, strength=2.0)
    mine = [(1 + 1.0) / 5, (2 + 0.6) / 5, 0.4 / 5]
    assert found == pytest.approx([math.log(own / rate) for own, rate in zip(mine, rates, strict=True)])
    assert sum(rate * math.exp(value) for rate, value in zip(rates, found, strict=True)) == pytest.approx(1)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.001, 1), min_size=3, max_size=3), st.floats(0.01, 100))
def test_without_shots_there_is_no_habit(rates: list[float], strength: float) -> None:
    assert habit([], LABELS, rates, strength) == (0.0, 0.0, 0.0)
    assert habit(["other"], LABELS, rates, strength) == (0.0, 0.0, 0.0)


def test_a_label_that_nobody_gives_is_not_infinitely_unlikely() -> None:
    found = habit(["c", "a"], LABELS, (0.7, 0.3, 0.0), strength=1.0)
    assert all(map(math.isfinite, found))
    assert found[2] == max(found)


def test_a_stronger_prior_trusts_a_person_less() -> None:
    weak, strong = (habit(["a"] * 4, LABELS, (0.2, 0.4, 0.4), strength)[0] for strength in (1.0, 50.0))
    assert weak > strong > 0


def test_habits_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        habit([], LABELS, (0.2, 0.4, 0.4), 0.0)
    with pytest.raises(ValueError):
        habit([], LABELS, (0.5, 0.5), 1.0)
