"""The benchmark of stacks reads its arms as they are meant, and its tables say what its files hold."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from tests.bench.bench_stacks import Arm, centred_basis


def test_an_arm_has_the_options_of_an_adaptation() -> None:
    arm = Arm.parse("lora:kind=lora,rank=4,below=common,shots=12,passes=3,targets=q_proj+v_proj,learning_rate=0.001")
    options = arm.options(labels=False)
    assert (arm.name, options.kind, options.rank, options.targets) == ("lora", "lora", 4, "q_proj,v_proj")
    assert options.learning_rate == 0.001 and arm.number("shots", 200) == 12 and arm.number("held", 0) == 0


def test_a_centred_basis_has_the_directions_in_which_anchors_differ() -> None:
    """Three anchors share a direction and differ in another one."""
    torch.manual_seed(0)
    shared, own_in, own_out = torch.randn(1, 6), torch.randn(6), torch.randn(5)
    out = torch.randn(5, 1)
    anchors = [
        LoraWeights({"m": (torch.cat([shared, own_in[None]]), torch.cat([out, n * own_out[:, None]], 1))}, 1.0, "all")
        for n in (-1.0, 0.0, 1.0)
    ]
    basis = centred_basis(anchors, 1)
    a, b = basis.factors["m"]
    assert abs(torch.cosine_similarity(a[0], own_in, dim=0)) == pytest.approx(1, abs=1e-5)
    assert abs(torch.cosine_similarity(b[:, 0], own_out, dim=0)) == pytest.approx(1, abs=1e-5)
    assert basis.norm() == pytest.approx((sum(one.norm() ** 2 for one in anchors) / 3) ** 0.5, rel=1e-4)


def test_the_gain_of_an_arm_is_the_mean_over_users_of_paired_differences() -> None:
    made = runpy.run_path(str(Path(__file__).parent.parent.parent / "docs" / "stacks.py"))
    below = {str(user): {"logliks": [[-2.0], [-3.0]]} for user in range(9)}
    above = {user: {"logliks": [[-1.5], [-2.5]]} for user in below}
    found = made["gain"](above, below)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.5, 0.5, 0.5)) and found["p"] < 0.01
