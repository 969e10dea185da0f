"""Weights of anchors fitted to a few shots by gradient. Knows neither users nor files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.scoring.backends import make_scoring_backend
from mta_cli.engine.scoring.label_examples import TrainingExample, build_prompt_tree, example_losses
from mta_cli.engine.scoring.log_likelihood import prune_examples

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase


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
    """Scalar weights of `anchors` that fit `rows`: gradient on mean loss + `pull` × squared distance from `prior`.

    The base must hold everything below the anchors (the task adapter) already.
    """
    joint = merge_loras([(anchor, 1.0) for anchor in anchors])
    if joint is None:
        return list(prior)
    started = merge_loras(list(zip(anchors, prior, strict=True)))
    (rows,) = prune_examples(base, [(rows, () if started is None else (started,))], [joint.placement])
    lens = make_scoring_backend(base, [build_prompt_tree(row) for row in rows], joint.placement)
    gate = torch.tensor(list(prior), dtype=torch.float32, device=base.device, requires_grad=True)
    centre = gate.detach().clone()
    optimizer = torch.optim.Adam([gate], lr=learning_rate)
    owner = {path: _anchor_of_rank(anchors, path).to(base.device) for path in joint.factors}
    fixed = {
        path: (a.to(base.device, lens.dtype), joint.scale * b.to(base.device, torch.float32))
        for path, (a, b) in joint.factors.items()
    }
    for _ in range(steps):
        factors = {path: (a, (b * gate[owner[path]]).to(lens.dtype)) for path, (a, b) in fixed.items()}
        found, _ = example_losses(lens.score_rows(range(len(rows)), factors), rows)
        loss = found.mean() + pull * (gate - centre).square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    values: list[float] = gate.detach().cpu().tolist()
    return values


def _anchor_of_rank(anchors: Sequence[LoraWeights], path: str) -> torch.Tensor:
    """Which anchor each rank of the merged factors belongs to."""
    ranks = [anchor.factors[path][0].shape[0] if path in anchor.factors else 0 for anchor in anchors]
    return torch.repeat_interleave(torch.arange(len(anchors)), torch.tensor(ranks))
