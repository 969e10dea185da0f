"""The slow reference: one text at a time through transformers' own modules, parts added by hooks where they act."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.prefix_tree import PromptTree


@contextmanager
def hooked(model: nn.Module, parts: Sequence[LoraWeights], prompt: int) -> Iterator[None]:
    """Every part adds s·B(A x) to its modules' outputs, from the token on where it begins to act."""
    with ExitStack() as stack:
        for part in parts:
            start = 0 if part.placement.late_tokens is None else max(0, prompt - part.placement.late_tokens)
            for path, (a, b) in part.factors.items():
                handle = model.get_submodule(path).register_forward_hook(_adding(part.scale * b @ a, start))
                stack.callback(handle.remove)
        yield


def _adding(delta: Tensor, start: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = inputs[0] @ delta.T
        return output + torch.cat([torch.zeros_like(added[:, :start]), added[:, start:]], 1)

    return hook


def slow_values(base: LoadedBase, fork: PromptTree, parts: Sequence[LoraWeights] = ()) -> list[Tensor]:
    """Log-likelihoods of each branch's tokens, differentiable in whatever the parts hold; in a closed fork, among the
    tokens that branches with the same beginning have there.
    """
    found = []
    for branch in fork.completions:
        with hooked(base.model, parts, len(fork.prompt)):
            logits = base.model(input_ids=torch.tensor([[*fork.prompt, *branch]]), use_cache=False).logits[0]
        chosen = torch.log_softmax(logits.float(), -1)[len(fork.prompt) - 1 : -1]
        for i in range(len(branch)) if fork.constrained else ():
            there = {other[i] for other in fork.completions if other[:i] == branch[:i] and len(other) > i}
            chosen = chosen - torch.eye(len(branch))[i][:, None] * chosen[i, sorted(there)].logsumexp(0)
        found.append(chosen.gather(-1, torch.tensor(branch)[:, None]).squeeze(-1))
    return found


def slow_sums(base: LoadedBase, fork: PromptTree, parts: Sequence[LoraWeights] = ()) -> list[float]:
    """Log-likelihood of each branch."""
    with torch.no_grad():
        return [float(values.sum()) for values in slow_values(base, fork, parts)]


def random_forks(shapes: Sequence[tuple[int, tuple[int, ...]]], seed: int = 0) -> list[PromptTree]:
    """Forks of random tokens; a shape is the prompt's length and each branch's."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 250, (count,), generator=generator).tolist())

    return [PromptTree(tokens(prompt), tuple(tokens(branch) for branch in branches)) for prompt, branches in shapes]
