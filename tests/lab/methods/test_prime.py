"""The search minimises what it says, within bounds and budget, and never does worse than where it begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.methods.anchor_weights import SHARE_BYTES
from mta_cli.engine.methods.method import UserModel
from mta_cli.engine.methods.personalize import build_models
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.lab.methods import prime
from mta_cli.lab.methods.prime import METHOD, MergeObjective, first_population, search_weights
from tests.engine.likelihoods import mean_loss
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.methods.contexts import a_context, a_user, same, settings_of

SHARES = [0.5, 0.3, 0.2]


def anchors_of(base: LoadedBase, count: int = 3, placement: str = "late") -> list[LoraWeights]:
    return [random_lora(base.model, i, placement=placement) for i in range(count)]


def taught(base: LoadedBase, rows: Sequence[TrainingRow]) -> LoraWeights:
    """An anchor that has learnt `rows`."""
    start = init_lora_weights(base.model, "all-linear", "late", 4, 8.0, 0)
    trainer = Trainer(base, [GroupMember(start, rows, Schedule(30, 5, 2e-2), 0)])
    list(trainer.train_steps())
    return trainer.weights(0)


@pytest.mark.parametrize("placement", ["upper", "late"])
def test_the_objective_is_the_loss_of_the_exact_merge_and_the_pull(base: LoadedBase, placement: str) -> None:
    anchors, rows = anchors_of(base, placement=placement), random_rows([20, 13, 31])
    candidates = np.array([[0.2, 0.9, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.1, 0.7]])
    found = MergeObjective(base, anchors, rows, 0.3)(candidates.T)
    for value, weights in zip(found, candidates, strict=True):
        merged = merge_loras(list(zip(anchors, weights.tolist(), strict=True)))
        loss = mean_loss(base, rows, () if merged is None else (merged,))
        assert value == pytest.approx(loss + 0.3 * np.square(weights - 1 / 3).sum(), abs=1e-4)


def test_it_begins_with_the_plain_answers(base: LoadedBase) -> None:
    population = first_population(SHARES, 60, 0)
    expected = [[1 / 3] * 3, SHARES, [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert population.shape == (15, 3) and population[:6].tolist() == expected
    assert ((population >= 0) & (population <= 1)).all()
    assert len(first_population([1.0], 60, 0)) == 5 and len(first_population(SHARES, 1, 0)) == 6


@pytest.mark.parametrize("seed", [0, 1])
def test_it_never_does_worse_than_where_it_begins_and_keeps_to_the_bounds(base: LoadedBase, seed: int) -> None:
    objective = MergeObjective(base, anchors_of(base), random_rows([20, 13, 31], seed=seed), 0.1)
    weights = search_weights(objective, SHARES, 60, seed)
    best = objective(np.array([weights]).T)[0]
    assert best < objective(first_population(SHARES, 60, seed).T).min() + 1e-6
    assert best < objective(np.array([SHARES]).T)[0] - 1e-3
    assert all(0.0 <= weight <= 1.0 for weight in weights)


@pytest.mark.parametrize(("evaluations", "tried"), [(60, 60), (40, 30), (15, 15), (1, 6)])
def test_it_keeps_to_the_budget(base: LoadedBase, evaluations: int, tried: int) -> None:
    objective, seen = MergeObjective(base, anchors_of(base), random_rows([12]), 0.1), list[int]()

    def counted(columns: np.ndarray) -> np.ndarray:
        seen.append(columns.shape[1])
        return objective(columns)

    search_weights(counted, SHARES, evaluations, 0)  # type: ignore[arg-type]
    assert sum(seen) == tried


def test_it_finds_the_anchor_that_made_the_shots(base: LoadedBase) -> None:
    rows = random_rows([24] * 4)
    anchors = [random_lora(base.model, 4, placement="late"), taught(base, rows)]
    wrong, right = search_weights(MergeObjective(base, anchors, rows, 0.0), [0.9, 0.1], 60, 0)
    assert right > 0.5 > wrong


def test_a_strong_pull_leaves_equal_shares(base: LoadedBase) -> None:
    objective = MergeObjective(base, anchors_of(base), random_rows([20, 13]), 1e6)
    assert search_weights(objective, SHARES, 60, 0) == pytest.approx([1 / 3] * 3)


def test_what_is_merged_is_what_was_found(base: LoadedBase) -> None:
    bench, person = a_context(base), a_user(3)
    (made,) = build_models(METHOD, bench, [person], METHOD.default_settings)
    cosines = (bench.profiles @ person.profile).tolist()
    near = sorted(range(5), key=lambda i: -cosines[i])[:3]
    objective = MergeObjective(base, [bench.anchors[i] for i in near], person.rows, 0.1)
    total = sum(max(cosines[i], 0.0) for i in near)
    weights = search_weights(objective, [max(cosines[i], 0.0) / total for i in near], 60, 0)
    expected = merge_loras([(bench.anchors[i], weight) for i, weight in zip(near, weights, strict=True)])
    assert expected is not None and same(made.loras[0], expected)
    assert made.bytes == SHARE_BYTES * sum(weight > 0 for weight in weights)


def test_anchors_that_only_harm_are_left_out(base: LoadedBase) -> None:
    rows = random_rows([24] * 3)
    good = taught(base, rows)
    harm = LoraWeights(good.factors, -50.0 * good.scale, good.placement)
    (made,) = build_models(METHOD, a_context(base, [harm]), [a_user(rows)], settings_of(METHOD, pull=0.0))
    assert made == UserModel()


def test_the_seed_alone_decides(base: LoadedBase) -> None:
    people = [a_user(2), a_user(1, 1)]
    first, second = (build_models(METHOD, a_context(base), people, METHOD.default_settings) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert same(one.loras[0], other.loras[0])
    (other,) = build_models(METHOD, a_context(base, seed=1), people[:1], METHOD.default_settings)
    assert not same(first[0].loras[0], other.loras[0])


def test_nobody_is_searched_for_twice_with_the_same_numbers(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = list[int]()

    def kept(objective: MergeObjective, shares: list[float], evaluations: int, seed: int) -> list[float]:
        seeds.append(seed)
        return shares

    monkeypatch.setattr(prime, "search_weights", kept)
    build_models(METHOD, a_context(base), [a_user(1), a_user(1, 1), a_user(1, 2)], METHOD.default_settings)
    assert len(set(seeds)) == 3


def test_few_anchors_and_nobody(base: LoadedBase) -> None:
    assert build_models(METHOD, a_context(base), [a_user(0)], METHOD.default_settings) == [UserModel()]
    assert build_models(METHOD, a_context(base, 0), [a_user(2)], METHOD.default_settings) == [UserModel()]
    for count in (1, 2):
        (made,) = build_models(METHOD, a_context(base, count), [a_user(1)], METHOD.default_settings)
        assert made.bytes <= count * SHARE_BYTES
