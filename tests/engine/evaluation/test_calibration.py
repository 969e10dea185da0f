"""Temperatures, against plain computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.engine.evaluation.calibration import fit_temperature, log_probabilities

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
    assert fit_temperature(scores * heat, drawn(scores)) == pytest.approx(heat, rel=0.1)


def test_no_other_temperature_is_better() -> None:
    scores = np.random.default_rng(2).normal(size=(60, 3)) * 2
    golds = drawn(scores / 3)
    best = fit_temperature(scores, golds)
    grid = np.exp(np.linspace(-3, 3, 61))
    assert loss(scores, golds, best) <= min(loss(scores, golds, heat) for heat in grid) + 1e-9


def test_temperatures_stay_within_bounds() -> None:
    scores = np.array([[1.0, 0.0], [2.0, 0.0]])
    assert fit_temperature(scores, [0, 0]) == pytest.approx(math.exp(-3), rel=1e-3)
    assert fit_temperature(scores, [1, 1]) == pytest.approx(math.exp(3), rel=1e-3)
    assert fit_temperature([], []) == 1.0


@pytest.mark.parametrize("golds", [[0], [0, 2], [-1, 0]])
def test_golds_that_do_not_fit_the_scores_are_refused(golds: list[int]) -> None:
    with pytest.raises(ValueError, match="gold labels"):
        fit_temperature([[0.0, 1.0], [1.0, 0.0]], golds)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-900, 0), min_size=2, max_size=6), st.floats(0.1, 10), st.floats(-50, 50))
def test_probabilities_sum_to_one_whatever_is_added(scores: list[float], heat: float, more: float) -> None:
    found = log_probabilities([scores], heat)
    assert np.exp(found).sum() == pytest.approx(1)
    assert log_probabilities(np.add(scores, more), heat) == pytest.approx(found[0], abs=1e-6)


def test_a_temperature_divides_log_odds() -> None:
    low, high = log_probabilities([0.0, 3.0], 2.0)
    assert high - low == pytest.approx(1.5)
