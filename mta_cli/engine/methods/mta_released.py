"""`mta-released`: the arithmetic of the code that MTA's authors released (arXiv 2511.20072), errors included.

The two nearest anchors by cosine share s₁/(s₁+s₂) and s₂/(s₁+s₂), and the shares are swapped: the nearest gets the
smaller one. A is averaged with A and B with B, so each anchor's own ΔW is scaled by the square of its share and the
rest is cross terms. A stack of rank 4 on all linear layers is then trained for one epoch, batch 8, at 5e-5.
It stands on this project's task adapter, prompts and profiles, as all methods do. Cosines below zero count as zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mta_cli.engine.lora.adapter import Factors, LoraWeights, merge_placements
from mta_cli.engine.lora.batched import stack_loras
from mta_cli.engine.lora.targets import ALL_LINEAR
from mta_cli.engine.methods.fusion import SHARE_BYTES, AnchorWeights, weigh_by_similarity
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import fit_loras


def swap_weights(shares: AnchorWeights) -> AnchorWeights:
    """The same anchors, nearest first, with the weights given out from the other end."""
    weights = [weight for _, weight in shares]
    return [(anchor, weight) for (anchor, _), weight in zip(shares, reversed(weights), strict=True)]


def average_factors(anchors: Sequence[LoraWeights], weights: Sequence[float]) -> LoraWeights | None:
    """`A = Σ w·A_i` and `B = Σ w·s_i·B_i` with scale 1: not the sum of the ΔW. None where there are no anchors.

    A module that an anchor lacks, or a rank that it is short of, counts as zeros.
    """
    if not anchors:
        return None
    share = torch.tensor(list(weights))
    factors: Factors = {
        path: (torch.tensordot(share, a, 1), torch.tensordot(share, b, 1))  # [rank, in], [out, rank]
        for path, (a, b) in stack_loras(anchors, torch.device("cpu")).items()
    }
    return LoraWeights(factors, 1.0, merge_placements([anchor.placement for anchor in anchors]))


def build_released_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """The averaged anchors and a stack for each of `people`. Somebody without shots has neither."""
    recipes = [swap_weights(shares) for shares in weigh_by_similarity(bench, people, settings)]
    merged = [average_factors([bench.anchors[i] for i, _ in shares], [w for _, w in shares]) for shares in recipes]
    under = [() if one is None else (one,) for one in merged]
    own = {**settings, "alpha": 2.0 * int(settings["rank"]), "targets": ALL_LINEAR, "epochs": 1}
    return [
        UserModel((*below, *stack.loras), bytes=SHARE_BYTES * len(shares) + stack.bytes, failed=stack.failed)
        for shares, below, stack in zip(recipes, under, fit_loras(bench, people, under, own), strict=True)
    ]


METHODS = (
    Method(
        "mta-released",
        "MTA as its authors' code computes it: A and B averaged apart, shares swapped, a rank-4 stack of one epoch",
        build_released_models,
        settings={"top_k": 2, "rank": 4, "learning_rate": 5e-5, "batch_size": 8, "placement": "late"},
    ),
)
