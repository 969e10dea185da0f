"""The log-likelihood of tokens from the decoder's last states, without ever holding all logits.

Logits of a few rows at a time are made, weighed and dropped; where gradients are wanted, those of the states are found
on the way: a state's gradient is the token's row of the vocabulary matrix less the mean row by softmax, times a factor
that need not be known yet (as in Liger Kernel's fused cross-entropy, arXiv 2410.10989). Logits, exponentials and sums
are in float32 whatever the weights are in: near 20, bfloat16 knows eighths of a nat.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CPU_MAX_LOGITS, GPU_MAX_LOGITS = 1 << 23, 1 << 27  # at once
CPU_MAX_HEAD_WEIGHTS, GPU_MAX_HEAD_WEIGHTS = (
    1 << 18,
    1 << 27,
)  # of the head in float32 at once: what a core's own cache holds


def token_log_likelihoods(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    places: Sequence[int] | None = None,
    rivals: Sequence[Sequence[int] | None] = (),
) -> Tensor:
    """Of `tokens` [n], in nats, float32 [n]; differentiable in the states alone.

    Token `i` follows normalised state `places[i]` of `states` [m, width], in ascending order; without `places` token
    `i` follows state `i`. `weight` [vocabulary, width] and `bias` are the head's. A token for which there are `rivals`,
    itself among them, is one of these for certain, and is weighed against them instead of the vocabulary.
    """
    places = range(len(tokens)) if places is None else places
    inner = [n for n, own in enumerate(rivals) if own is not None]
    if not inner:
        return _full_vocab_log_likelihoods(states, weight, bias, tokens, places)
    against = [own for own in rivals if own is not None]
    found = _restricted_log_likelihoods(states[[places[n] for n in inner]], weight, bias, tokens[inner], against)
    outer = [n for n, own in enumerate(rivals) if own is None]
    if not outer:
        return found
    used = {place: i for i, place in enumerate(dict.fromkeys(places[n] for n in outer))}
    others = _full_vocab_log_likelihoods(
        states[list(used)], weight, bias, tokens[outer], [used[places[n]] for n in outer]
    )
    return torch.cat([others, found])[torch.tensor(outer + inner, device=found.device).argsort()]


def _full_vocab_log_likelihoods(
    states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, places: Sequence[int]
) -> Tensor:
    result: Tensor = _FusedLinearLogLikelihood.apply(states, weight, bias, tokens, places)  # type: ignore[no-untyped-call]
    return result


def _restricted_log_likelihoods(
    states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, rivals: Sequence[Sequence[int]]
) -> Tensor:
    """The same where each of `tokens` [n], behind `states` [n, width], is one of its rivals."""
    column = {token: i for i, token in enumerate(dict.fromkeys(token for own in rivals for token in own))}
    rows = torch.tensor(list(column), device=states.device)
    logits = F.linear(states.float(), weight[rows].float(), None if bias is None else bias[rows].float())
    where = [(n, column[token]) for n, own in enumerate(rivals) for token in own]
    row, place = torch.tensor(where, device=states.device).T
    closed = torch.full_like(logits, float("-inf")).index_put((row, place), logits.new_zeros(()))
    right = torch.tensor([column[token] for token in tokens.tolist()], device=states.device)
    return (logits + closed).log_softmax(1).gather(1, right[:, None]).squeeze(1)


class _FusedLinearLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, places: Sequence[int]
    ) -> Tensor:
        """See `log_likelihoods`; keeps the gradient of each token's state up to the factor that `backward` gets."""
        step = max(16, (GPU_MAX_LOGITS if states.is_cuda else CPU_MAX_LOGITS) // len(weight))
        fine = torch.empty(min(step, len(states)), len(weight), device=states.device)
        where = torch.tensor(places, dtype=torch.long, device=states.device)
        values, slopes = [], []
        for start in range(0, len(states), step):
            some = states[start : start + step]
            own = slice(bisect_left(places, start), bisect_left(places, start + step))
            right, row = tokens[own], where[own] - start
            wide = _fill_logits(some, weight, bias, fine[: len(some)])
            chosen, top = wide[row, right], wide.amax(-1, keepdim=True)
            total = wide.sub_(top).exp_().sum(-1, keepdim=True)
            values.append(chosen - (top + total.log()).squeeze(1)[row])
            if ctx.needs_input_grad[0]:
                mean = (wide.to(weight.dtype) @ weight).float() / total  # of the vocabulary's rows, by softmax
                slopes.append((weight[right] - mean[row]).to(weight.dtype))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(slopes), where)
            ctx.states = len(states)
        return torch.cat(values) if values else states.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The states' gradient [m, width]; the head, the tokens and their places have none."""
        slopes, where = ctx.saved_tensors
        each = slopes * grads[0].unsqueeze(1)
        found = each.new_zeros(ctx.states, each.shape[1]).index_add_(0, where, each)
        return found.to(slopes.dtype), None, None, None, None


def _fill_logits(states: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> Tensor:
    """Fill `into` [n, vocabulary], float32, with the logits of `states`, and give it back.

    Products are those of the weights' own format, which float32 holds exactly; nothing is rounded to it again.
    """
    if weight.dtype == torch.float32:
        return into.copy_(F.linear(states, weight, bias))
    rows = max(1, (GPU_MAX_HEAD_WEIGHTS if weight.is_cuda else CPU_MAX_HEAD_WEIGHTS) // weight.shape[1])
    fine = states.float()
    for some, place in zip(torch.split(weight, rows), torch.split(into, rows, dim=1), strict=True):
        place.copy_(fine @ some.float().T)
    return into if bias is None else into.add_(bias)
