"""The formulas by which anchors are weighed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_cli.engine.methods.weightings import (
    WEIGHTINGS,
    evidence_weights,
    similarity_weights,
    uniform_weights,
)
from mta_cli.options import SHOT_WEIGHTINGS, WEIGHT_METHODS


def test_every_weighting_that_users_may_ask_for_has_a_formula() -> None:
    for name in WEIGHT_METHODS:
        assert (WEIGHTINGS[name].of_cosines is None) == (name in SHOT_WEIGHTINGS)


def test_the_released_code_gives_the_nearest_anchor_the_smallest_share() -> None:
    released = WEIGHTINGS["released"].of_cosines
    assert released is not None and released([0.6, 0.2]) == pytest.approx([0.25, 0.75])


def test_similarity_weights_are_shares() -> None:
    assert similarity_weights([0.6, 0.2]) == pytest.approx([0.75, 0.25])
    assert similarity_weights([0.5, -0.5]) == [1.0, 0.0]
    assert similarity_weights([-0.1, -0.2]) == uniform_weights(2)


def test_evidence_is_the_posterior_with_the_null_candidate() -> None:
    total = math.exp(-1) + math.exp(-3) + math.exp(-2)
    assert evidence_weights([-1.0, -3.0], -2.0, 1.0) == pytest.approx([math.exp(-1) / total, math.exp(-3) / total])


def test_sharpness_zero_knows_nothing() -> None:
    assert evidence_weights([-1.0, -900.0], -2.0, 0.0) == pytest.approx([1 / 3, 1 / 3])


@given(st.lists(st.floats(-1e6, 0), min_size=1, max_size=20), st.floats(-1e6, 0), st.floats(0, 100))
def test_evidence_weights_leave_the_rest_to_the_null_candidate(
    logliks: list[float], null: float, sharpness: float
) -> None:
    weights, top = evidence_weights(logliks, null, sharpness), max(*logliks, null)
    powers = [math.exp(sharpness * (value - top)) for value in (*logliks, null)]
    assert 1.0 - sum(weights) == pytest.approx(powers[-1] / sum(powers), abs=1e-9)
    assert all(0 <= value <= 1 for value in weights)
