"""Log-likelihoods of tokens from the decoder's last states, without keeping all logits in memory.

Logits are computed for a few rows at a time and dropped. Gradients of the states are computed in the same pass: a
state's gradient is the token's row of the vocabulary matrix minus the softmax-weighted mean row, times the upstream
gradient, which is applied later (as in Liger Kernel's fused cross-entropy, arXiv 2410.10989). Logits, exponentials and
sums are always float32, because near 20 bfloat16 has steps of an eighth of a nat.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mta_cli.engine.model.llama import soft_cap

CPU_MAX_LOGITS, GPU_MAX_LOGITS = 1 << 23, 1 << 27  # logits in memory at once
CPU_MAX_HEAD_WEIGHTS = 1 << 18  # weights of the head in float32 at once, to fit a core's cache
GPU_MAX_HEAD_WEIGHTS = 1 << 27


def token_log_likelihoods(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    state_index: Sequence[int] | None = None,
    allowed: Sequence[Sequence[int] | None] = (),
    cap: float | None = None,
) -> Tensor:
    """Log-likelihoods of `tokens` [n] in nats, float32 [n]; differentiable in the states alone.

    Token `i` is predicted by normalised state `state_index[i]` (ascending) of `states` [m, width]; without
    `state_index`, by state `i`. `weight` [vocabulary, width] and `bias` are the head's. If `allowed[i]` is given, token
    `i` is one of these, and its probability is normalised over them instead of the vocabulary.
    """
    state_index = range(len(tokens)) if state_index is None else state_index
    restricted = [n for n, candidates in enumerate(allowed) if candidates is not None]
    if not restricted:
        return _full_vocab_log_likelihoods(states, weight, bias, tokens, state_index, cap)
    # 1. tokens with few candidates  [restricted]
    restricted_values = _restricted_log_likelihoods(
        states[[state_index[n] for n in restricted]],
        weight,
        bias,
        tokens[restricted],
        [candidates for candidates in allowed if candidates is not None],
        cap,
    )
    full = [n for n, candidates in enumerate(allowed) if candidates is None]
    if not full:
        return restricted_values
    # 2. the other tokens, from the states that predict them  [full]
    used = {state: i for i, state in enumerate(dict.fromkeys(state_index[n] for n in full))}
    full_values = _full_vocab_log_likelihoods(
        states[list(used)], weight, bias, tokens[full], [used[state_index[n]] for n in full], cap
    )
    # 3. both in the order of `tokens`  [n]
    order = torch.tensor(full + restricted, device=states.device).argsort()
    return torch.cat([full_values, restricted_values])[order]


def _full_vocab_log_likelihoods(
    states: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, state_index: Sequence[int], cap: float | None
) -> Tensor:
    result: Tensor = _FusedLinearLogLikelihood.apply(states, weight, bias, tokens, state_index, cap)  # type: ignore[no-untyped-call]
    return result


def _restricted_log_likelihoods(
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    allowed: Sequence[Sequence[int]],
    cap: float | None,
) -> Tensor:
    """Log-likelihoods of `tokens` [n], predicted by `states` [n, width], each normalised over its allowed tokens."""
    # 1. logits of every token that is allowed anywhere  [n, candidates]
    vocabulary = list(dict.fromkeys(token for candidates in allowed for token in candidates))
    column = {token: i for i, token in enumerate(vocabulary)}
    ids = torch.tensor(vocabulary, device=states.device)
    logits = F.linear(states.float(), weight[ids].float(), None if bias is None else bias[ids].float())
    if cap is not None:
        logits = soft_cap(logits, cap)
    # 2. −∞ where a token is not allowed  [n, candidates]
    places = [(n, column[token]) for n, candidates in enumerate(allowed) for token in candidates]
    row, allowed_column = torch.tensor(places, device=states.device).T
    mask = torch.full_like(logits, float("-inf")).index_put((row, allowed_column), logits.new_zeros(()))
    # 3. log softmax over the allowed tokens, at each token  [n]
    target = torch.tensor([column[token] for token in tokens.tolist()], device=states.device)
    return (logits + mask).log_softmax(1).gather(1, target[:, None]).squeeze(1)


class _FusedLinearLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        state_index: Sequence[int],
        cap: float | None,
    ) -> Tensor:
        """See `token_log_likelihoods`. Keeps each token's state gradient up to the factor that `backward` receives."""
        chunk = max(16, (GPU_MAX_LOGITS if states.is_cuda else CPU_MAX_LOGITS) // len(weight))
        buffer = torch.empty(min(chunk, len(states)), len(weight), device=states.device)  # [chunk, vocabulary]
        index = torch.tensor(state_index, dtype=torch.long, device=states.device)
        values, slopes = [], []
        for start in range(0, len(states), chunk):
            # 1. logits of some states, and the tokens that follow them  [chunk, vocabulary]
            chunk_states = states[start : start + chunk]
            following = slice(bisect_left(state_index, start), bisect_left(state_index, start + chunk))
            targets, row = tokens[following], index[following] - start
            logits = _fill_logits(chunk_states, weight, bias, buffer[: len(chunk_states)])
            rates = None  # d capped logit / d logit; None: 1 everywhere
            if cap is not None:
                logits.div_(cap).tanh_()
                rates = 1.0 - logits.square() if ctx.needs_input_grad[0] else None
                logits.mul_(cap)
            # 2. log softmax at the tokens; the buffer now holds exp(logit − top)  [tokens of the chunk]
            chosen, top = logits[row, targets], logits.amax(-1, keepdim=True)
            total = logits.sub_(top).exp_().sum(-1, keepdim=True)
            values.append(chosen - (top + total.log()).squeeze(1)[row])
            # 3. gradient: the token's row of the head minus the softmax-weighted mean row  [tokens of the chunk, width]
            if ctx.needs_input_grad[0]:
                shares, target_weights = logits, weight[targets]
                if rates is not None:
                    shares, target_weights = logits * rates, weight[targets] * rates[row, targets][:, None]
                mean = (shares.to(weight.dtype) @ weight).float() / total
                slopes.append((target_weights - mean[row]).to(weight.dtype))
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.cat(slopes), index)
            ctx.states = len(states)
        return torch.cat(values) if values else states.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The states' gradient [m, width]; the other inputs have none."""
        slopes, index = ctx.saved_tensors
        by_token = slopes * grads[0].unsqueeze(1)  # [n, width]
        by_state = by_token.new_zeros(ctx.states, by_token.shape[1]).index_add_(0, index, by_token)
        return by_state.to(slopes.dtype), None, None, None, None, None


def _fill_logits(states: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> Tensor:
    """Fill `into` [n, vocabulary], float32, with the logits of `states`, and return it.

    16-bit states and weights are multiplied in float32, and products are not rounded back.
    """
    if weight.dtype == torch.float32:
        return into.copy_(F.linear(states, weight, bias))
    rows = max(1, (GPU_MAX_HEAD_WEIGHTS if weight.is_cuda else CPU_MAX_HEAD_WEIGHTS) // weight.shape[1])
    states = states.float()
    for weight_rows, columns in zip(torch.split(weight, rows), torch.split(into, rows, dim=1), strict=True):
        columns.copy_(states @ weight_rows.float().T)
    return into if bias is None else into.add_(bias)
