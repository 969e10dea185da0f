"""The benchmark of stacks reads its arms as they are meant, and its tables say what its files hold."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from benchmarks.bench_stacks import Arm


def test_an_arm_has_the_options_of_an_adaptation() -> None:
    arm = Arm.parse("lora:rank=4,below=common,shots=12,passes=3,targets=q_proj+v_proj,learning_rate=0.001")
    options = arm.options
    assert (arm.name, options.rank, options.targets) == ("lora", 4, "q_proj,v_proj")
    assert options.learning_rate == 0.001 and arm.number("shots", 200) == 12 and arm.number("held", 0) == 0


def test_the_gain_of_an_arm_is_the_mean_over_users_of_paired_differences() -> None:
    made = runpy.run_path(str(Path(__file__).parent.parent.parent / "docs" / "stacks.py"))
    below = {str(user): {"logliks": [[-2.0], [-3.0]]} for user in range(9)}
    above = {user: {"logliks": [[-1.5], [-2.5]]} for user in below}
    found = made["gain"](above, below)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.5, 0.5, 0.5)) and found["p"] < 0.01
