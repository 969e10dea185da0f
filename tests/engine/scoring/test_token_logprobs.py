"""Log-likelihoods without all logits at once: the values and the gradients of the plain way, whatever the pieces."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mta_cli.engine.scoring import token_logprobs
from mta_cli.engine.scoring.token_logprobs import token_log_likelihoods


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("at_once", [1, 100 * 16, 1 << 23])
def test_values_and_gradients_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, at_once: int, biased: bool, cap: float | None
) -> None:
    monkeypatch.setattr(token_logprobs, "CPU_MAX_LOGITS", at_once)
    torch.manual_seed(0)
    weight, states = torch.randn(100, 12), torch.randn(70, 12, requires_grad=True)
    bias = torch.randn(100) if biased else None
    tokens, shares = torch.randint(100, (70,)), torch.rand(70)
    found = token_log_likelihoods(states, weight, bias, tokens, cap=cap)
    (found * shares).sum().backward()
    assert states.grad is not None
    slopes, states.grad = states.grad, None
    logits = F.linear(states, weight, bias)
    capped = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = -F.cross_entropy(capped, tokens, reduction="none")
    (expected * shares).sum().backward()
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(slopes, states.grad, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 100 * 16, 1 << 23])
def test_several_tokens_may_follow_one_state(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Values and gradients are those of as many copies of it, and a state that no token follows has none."""
    monkeypatch.setattr(token_logprobs, "CPU_MAX_LOGITS", at_once)
    torch.manual_seed(1)
    weight, states = torch.randn(100, 12), torch.randn(40, 12, requires_grad=True)
    places = sorted(torch.randint(39, (90,)).tolist())
    tokens, shares = torch.randint(100, (90,)), torch.rand(90)
    found = token_log_likelihoods(states, weight, None, tokens, places)
    (slopes,) = torch.autograd.grad((found * shares).sum(), states)
    copies = token_log_likelihoods(states[places], weight, None, tokens)
    (expected,) = torch.autograd.grad((copies * shares).sum(), states)
    assert torch.allclose(found, copies, atol=1e-5) and torch.allclose(slopes, expected, atol=1e-5)
    assert not slopes[39].any()


def test_an_unlikely_token_has_a_number() -> None:
    """Its share of the softmax is zero in float32; its log-likelihood is not −∞."""
    weight = torch.tensor([[200.0], [-200.0]])
    found = token_log_likelihoods(torch.ones(1, 1), weight, None, torch.tensor([1]))
    assert found.tolist() == [-400.0]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("at_once", [1, 7 * 16, 1 << 18])
def test_logits_of_bfloat16_are_not_rounded_to_it(monkeypatch: pytest.MonkeyPatch, at_once: int, biased: bool) -> None:
    monkeypatch.setattr(token_logprobs, "CPU_MAX_HEAD_WEIGHTS", at_once)
    torch.manual_seed(0)
    weight, states = (2 * torch.randn(300, 16)).bfloat16(), (2 * torch.randn(5, 16)).bfloat16().requires_grad_()
    bias = torch.randn(300).bfloat16() if biased else None
    tokens = F.linear(states, weight, bias).topk(2).indices[:, 1]
    found = token_log_likelihoods(states, weight, bias, tokens)
    fine = states.detach().float().requires_grad_()
    exact = -F.cross_entropy(
        F.linear(fine, weight.float(), None if bias is None else bias.float()), tokens, reduction="none"
    )
    rounded = -F.cross_entropy(F.linear(states, weight, bias).float(), tokens, reduction="none")
    assert found.dtype == torch.float32 and torch.allclose(found, exact, atol=2e-5)
    assert (rounded - exact).abs().max() > 0.02
    found.sum().backward()
    (wanted,) = torch.autograd.grad(exact.sum(), fine)
    assert states.grad is not None and states.grad.dtype == torch.bfloat16
    assert (states.grad.float() - wanted).norm() < 0.02 * wanted.norm()


def test_nothing_asked() -> None:
    assert token_log_likelihoods(torch.zeros(0, 4), torch.ones(9, 4), None, torch.zeros(0, dtype=torch.long)).shape == (
        0,
    )


def test_a_cap_counts_among_a_few_tokens_as_well() -> None:
    torch.manual_seed(2)
    weight, states = torch.randn(100, 12), torch.randn(3, 12, requires_grad=True)
    tokens, candidates = torch.tensor([4, 7, 9]), [(4, 5, 6), (7, 4), (9, 50, 99)]
    found = token_log_likelihoods(states, weight, None, tokens, None, candidates, 2.0)
    capped = 2.0 * torch.tanh(states @ weight.T / 2.0)
    expected = torch.stack([row[list(few)].log_softmax(0)[0] for row, few in zip(capped, candidates, strict=True)])
    assert torch.allclose(found, expected, atol=1e-6)
    (slopes,) = torch.autograd.grad(found.sum(), states, retain_graph=True)
    assert torch.allclose(slopes, torch.autograd.grad(expected.sum(), states)[0], atol=1e-6)
