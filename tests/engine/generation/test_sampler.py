"""The choice of a token: what penalties and bounds do to its probability."""

from __future__ import annotations

import math

import pytest
import torch

from mta_cli.engine.generation.sampler import TokenSampler, sample_token
from mta_cli.errors import IntegrityFault

LOGITS = torch.tensor([2.0, 1.9, -1.0, -1.05])


def test_the_repetition_penalty_divides_and_multiplies() -> None:
    sampler = TokenSampler(repetition_penalty=2.0)
    assert sampler.takes_likeliest is False
    assert [sampler.choose(LOGITS).token for _ in range(2)] == [0, 1]  # 2.0 / 2 is less than 1.9
    low = torch.tensor([-1.0, -1.5, -4.0, -5.0])
    sampler = TokenSampler(repetition_penalty=2.0)
    assert [sampler.choose(low).token for _ in range(3)] == [0, 1, 0]  # -2.0, then -3.0
    assert TokenSampler(repetition_penalty=1.0).takes_likeliest


def test_it_counts_a_token_once_and_leaves_the_logits_alone() -> None:
    logits, sampler = LOGITS.clone(), TokenSampler(repetition_penalty=1.02, top_logprobs=2)
    found = [sampler.choose(logits) for _ in range(4)]
    assert [one.token for one in found] == [0] * 4  # 2.0 / 1.02 is above 1.9, however often
    assert torch.equal(logits, LOGITS)
    assert found[3].logprob == pytest.approx(float(torch.log_softmax(LOGITS, -1)[0]))


def test_min_p_leaves_out_what_is_far_less_likely() -> None:
    logits = torch.log(torch.tensor([0.6, 0.3, 0.08, 0.02]))
    drawn = {seed: sample_token(logits, 1.0, 1.0, torch.Generator().manual_seed(seed), 0.4) for seed in range(300)}
    assert set(drawn.values()) == {0, 1}
    share = sum(token == 1 for token in drawn.values()) / len(drawn)
    assert math.isclose(share, 1 / 3, abs_tol=0.08)
    assert {sample_token(logits, 1.0, 1.0, torch.Generator().manual_seed(seed)) for seed in range(300)} == {0, 1, 2, 3}
    assert {sample_token(logits, 1.0, 1.0, torch.Generator().manual_seed(seed), 1.0) for seed in range(50)} == {0}


def test_min_p_counts_after_the_temperature() -> None:
    logits = torch.log(torch.tensor([0.6, 0.3, 0.1]))
    hot = {sample_token(logits, 4.0, 1.0, torch.Generator().manual_seed(seed), 0.6) for seed in range(200)}
    assert hot == {0, 1, 2}  # at temperature 4 the last has 0.64 of the first's probability


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(IntegrityFault, match="no usable numbers"):
        TokenSampler().choose(torch.tensor([math.nan, 0.0]))
