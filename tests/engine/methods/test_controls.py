"""Noise is as large as what it stands for, and nothing like it."""

from __future__ import annotations

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.methods.controls import noise_like
from mta_cli.engine.model.load import LoadedBase
from tests.engine.lora_cases import random_lora
from tests.engine.methods.benches import same


def test_noise_has_the_shapes_and_norms_of_every_module(base: LoadedBase) -> None:
    anchor = random_lora(base.model, 1, rank=3, placement="late").cast_for_storage()
    noise = noise_like(anchor, 5)
    assert list(noise.factors) == list(anchor.factors)
    assert (noise.scale, noise.placement) == (anchor.scale, anchor.placement)
    for path, pair in anchor.factors.items():
        assert [factor.shape for factor in noise.factors[path]] == [factor.shape for factor in pair]
        a, b = (factor.double() for factor in noise.factors[path])
        expected = anchor.scale * (pair[1].double() @ pair[0].double()).norm()
        assert float(noise.scale * (b @ a).norm()) == pytest.approx(float(expected), rel=1e-6)
    assert noise.norm() == pytest.approx(anchor.norm(), rel=1e-6)


def test_noise_points_nowhere_in_particular(base: LoadedBase) -> None:
    anchor = random_lora(base.model, 1)
    noise = noise_like(anchor, 5)
    product = sum(float((noise.delta_weight(path) * anchor.delta_weight(path)).sum()) for path in anchor.factors)
    assert abs(product) < 0.05 * anchor.norm() ** 2


def test_the_seed_alone_decides(base: LoadedBase) -> None:
    anchor = random_lora(base.model, 1)
    backwards = LoraWeights(dict(list(anchor.factors.items())[::-1]), anchor.scale, anchor.placement)
    assert same(noise_like(anchor, 5), noise_like(anchor, 5))
    assert same(noise_like(anchor, 5), noise_like(backwards, 5))
    assert not same(noise_like(anchor, 5), noise_like(anchor, 6))


def test_a_module_that_does_nothing_gets_noise_that_does_nothing(base: LoadedBase) -> None:
    anchor = random_lora(base.model, 1)
    path = next(iter(anchor.factors))
    a, b = anchor.factors[path]
    for pair in ((a, torch.zeros_like(b)), (torch.zeros_like(a), b)):
        noise = noise_like(LoraWeights({**anchor.factors, path: pair}, anchor.scale, anchor.placement), 5)
        assert float(noise.delta_weight(path).norm()) == 0.0
