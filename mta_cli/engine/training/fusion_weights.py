"""Weights of anchors, learned from a few shots by gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mta_cli.engine.backends import backend_of
from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.label_examples import TrainingExample, build_prompt_tree, example_losses
from mta_cli.engine.scoring.log_likelihood import prune_examples
from mta_cli.engine.scoring.token_budget import TokenBudget
from mta_cli.engine.scoring.tree_scorers import plan_batches


def learn_weights(
    base: LoadedBase,
    anchors: Sequence[LoraWeights],
    prior: Sequence[float],
    rows: Sequence[TrainingExample],
    *,
    steps: int = 20,
    learning_rate: float = 0.02,
    pull: float = 1.0,
) -> list[float]:
    """One weight for each of `anchors`, by Adam on the mean loss of `rows` + `pull` × squared distance from `prior`.

    The task adapter must already be merged into `base`.
    """
    merged = merge_loras([(anchor, 1.0) for anchor in anchors])
    if merged is None:
        return list(prior)
    # 1. the shots, without labels of very low probability under the prior's fusion
    initial = merge_loras(list(zip(anchors, prior, strict=True)))
    (rows,) = prune_examples(base, [(rows, () if initial is None else (initial,))], [merged.placement])
    scorer = backend_of(base).tree_scorer([build_prompt_tree(row) for row in rows], merged.placement)
    # 2. the weights, and for each module the anchor of each rank  [Σ rank]
    weights = torch.tensor(list(prior), dtype=torch.float32, device=base.device, requires_grad=True)  # [anchors]
    centre = weights.detach().clone()
    optimizer = torch.optim.Adam([weights], lr=learning_rate)
    owner = {path: _anchor_of_rank(anchors, path).to(base.device) for path in merged.factors}
    fixed = {
        path: (a.to(base.device, scorer.dtype), merged.scale * b.to(base.device, torch.float32))
        for path, (a, b) in merged.factors.items()
    }
    budget, grad, terms = TokenBudget(base), torch.zeros_like(centre), 0

    def add_gradient(batch: list[int]) -> None:
        nonlocal terms
        # 3. each rank of B times its anchor's weight  [out, Σ rank]
        factors = {path: (a, (b * weights[owner[path]]).to(scorer.dtype)) for path, (a, b) in fixed.items()}
        losses, _ = example_losses(scorer.score_rows(batch, factors), [rows[i] for i in batch])
        # 4. the gradient of their sum  [anchors]
        grad.add_(torch.autograd.grad(losses.sum(), weights)[0])
        terms += len(losses)

    for _ in range(steps):
        grad.zero_()
        terms = 0
        budget.run_batches(plan_batches(scorer, range(len(rows)), [0] * len(rows), budget.tokens), add_gradient)
        weights.grad = grad / terms + 2.0 * pull * (weights.detach() - centre)
        optimizer.step()
    values: list[float] = weights.detach().cpu().tolist()
    return values


def _anchor_of_rank(anchors: Sequence[LoraWeights], path: str) -> torch.Tensor:
    """The anchor that each rank of the merged factors belongs to, [Σ rank]."""
    ranks = [anchor.factors[path][0].shape[0] if path in anchor.factors else 0 for anchor in anchors]
    return torch.repeat_interleave(torch.arange(len(anchors)), torch.tensor(ranks))
