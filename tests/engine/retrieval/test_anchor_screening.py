"""Gates: outliers among anchors are found, normal variation is not, and an anchor's reach is capped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.retrieval.anchor_screening import (
    MIN_ANCHORS_TO_SCREEN,
    find_outliers,
    mean_kl_divergences,
    min_cosine_by_anchor,
    module_norms,
    norm_ratios,
    selection_shares,
)
from mta_cli.pipeline.bank.screening import SHARE_TOP_K
from tests.engine.lora_cases import random_lora


def bank(base: LoadedBase, count: int = 5, placement: str = "upper") -> list[LoraWeights]:
    return [random_lora(base.model, seed, placement=placement) for seed in range(count)]


def scaled(weights: LoraWeights, factor: float) -> LoraWeights:
    return replace(weights, scale=weights.scale * factor)


def test_the_norm_of_a_module_is_that_of_its_delta(base: LoadedBase) -> None:
    (weights,) = bank(base, 1)
    for path, norm in module_norms(scaled(weights, -0.5)).items():
        assert norm == pytest.approx(float(torch.linalg.norm(weights.delta_weight(path))) / 2, rel=1e-5)


def test_one_module_that_is_too_large_is_enough(base: LoadedBase) -> None:
    honest = [module_norms(one) for one in bank(base)]
    ratios = norm_ratios(honest)
    assert all(0.9 < ratio < 2.0 for ratio in ratios)
    path = next(iter(honest[2]))
    poisoned = [dict(own) for own in honest]
    poisoned[2][path] *= 20
    found = norm_ratios(poisoned)
    assert found[2] > 10 and [found[i] for i in (0, 1, 3, 4)] == pytest.approx(
        [ratios[i] for i in (0, 1, 3, 4)], rel=0.5
    )


def test_few_anchors_are_not_judged_beside_each_other() -> None:
    assert norm_ratios([{"m": 1.0}] * (MIN_ANCHORS_TO_SCREEN - 2) + [{"m": 99.0}]) == [1.0] * (
        MIN_ANCHORS_TO_SCREEN - 1
    )
    assert norm_ratios([{"m": 1.0}] * (MIN_ANCHORS_TO_SCREEN - 1) + [{"m": 99.0}])[-1] == 99.0
    assert find_outliers([0.1, 0.1, 9.0], "probe", 10.0) == []


def test_a_module_that_others_lack_is_beyond_any_bound() -> None:
    assert norm_ratios([{"m": 1.0}] * 4 + [{"m": 1.0, "other": 1.0}])[-1] > 1e6


def test_what_is_no_number_is_found() -> None:
    assert [one.anchor_index for one in find_outliers([0.1, 0.1, float("nan"), 0.1], "probe", 10.0)] == [2]
    assert [one.anchor_index for one in find_outliers([0.1, 0.1, 0.1, float("inf")], "probe", 10.0)] == [3]


def test_the_floor_and_the_bound_both_hold() -> None:
    values = [0.01, 0.01, 0.01, 0.2]
    assert [one.anchor_index for one in find_outliers(values, "probe", 10.0)] == [3]
    assert find_outliers(values, "probe", 10.0, floor=0.25) == [] and find_outliers(values, "probe", 0.0) == []
    (found,) = find_outliers([0.1, 0.1, 0.1, 2.0], "probe", 10.0, floor=0.25)
    assert (found.anchor_index, found.gate, found.value, found.bound) == (3, "probe", 2.0, pytest.approx(1.0))


@pytest.mark.parametrize("placement", ["all", "late"])
def test_neutral_prompts_move_with_an_anchors_size(base: LoadedBase, placement: str) -> None:
    prompts = [base.tokenizer(text)["input_ids"] for text in ("how are you today", "name a colour")]
    one = bank(base, 1, placement)[0]
    still, small, large = mean_kl_divergences(base, prompts, [(), (scaled(one, 0.3),), (scaled(one, 3.0),)])
    assert abs(still) < 1e-6 < small < large


def test_an_anchor_in_the_middle_of_everybody_keeps_those_nearest_to_it() -> None:
    """Twenty people between five corners; a sixth anchor has the mean direction, and is in everybody's reach."""
    rng = np.random.default_rng(0)
    corners = np.eye(12, dtype=np.float32)[:12]
    people = np.concatenate([corners + 0.3 + 0.05 * rng.standard_normal((12, 12)) for _ in range(2)])
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    mean = people.mean(axis=0) / np.linalg.norm(people.mean(axis=0))
    honest = people @ people[:12].T
    assert min_cosine_by_anchor(honest, 2, 0.75) == {}
    cosines = np.concatenate([honest, (people @ mean)[:, None]], axis=1)
    assert selection_shares(cosines, 2)[-1] == 1.0
    found = min_cosine_by_anchor(cosines, 2, 0.5)
    assert set(found) == {12}
    assert int((cosines[:, 12] >= found[12]).sum()) == 12
    assert min_cosine_by_anchor(cosines, 2, 0.0) == {} and min_cosine_by_anchor(cosines, 7, 0.5) == {}


@pytest.mark.parametrize(("anchors", "capped"), [(3, False), (2 * SHARE_TOP_K, False), (2 * SHARE_TOP_K + 1, True)])
def test_reach_is_limited_in_banks_of_more_than_twice_the_anchors_of_a_recipe(anchors: int, capped: bool) -> None:
    """The pages say eight: however small the share, an anchor that all users are nearest to keeps them."""
    assert SHARE_TOP_K == 4
    cosines = np.tile(np.linspace(1.0, 0.1, anchors, dtype=np.float32), (100, 1))
    cosines -= 0.001 * np.arange(100, dtype=np.float32)[:, None]
    assert bool(min_cosine_by_anchor(cosines, SHARE_TOP_K, 0.01)) is capped
