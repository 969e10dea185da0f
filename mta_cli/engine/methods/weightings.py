"""Every way to weight a user's anchors: its settings and its formula.

To add one, add an entry here, and its name to `options.WEIGHT_METHODS` if users may choose it. A formula that needs
more than cosines goes into `_weigh` of `anchor_weights.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CosineWeights = Callable[[Sequence[float]], list[float]]
"""Weights of anchors from their cosines with the user's profile, the nearest first."""


def similarity_weights(similarities: Sequence[float]) -> list[float]:
    """Each similarity divided by their sum (the paper's rule). Negative ones count as 0; equal weights if all are 0."""
    kept = [max(value, 0.0) for value in similarities]
    total = sum(kept)
    return [value / total for value in kept] if total > 0 else uniform_weights(len(kept))


def uniform_weights(count: int) -> list[float]:
    """Equal weights that sum to one."""
    return [1.0 / count] * count


def evidence_weights(logliks: Sequence[float], null: float, sharpness: float) -> list[float]:
    """Weights of anchors from the shots' summed log-likelihoods under each and under the `null` candidate (nats).

    Softmax of `sharpness × log-likelihood` over anchors and null candidate: at sharpness 1 the posterior under a flat
    prior. The null candidate's weight is left out of the result.
    """
    scores = [sharpness * value for value in (*logliks, null)]
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers][:-1]


@dataclass(frozen=True)
class Weighting:
    """A weighting: the `FuseOptions` that it reads, and its formula if it depends only on the cosines of the nearest
    anchors.

    Weightings without a formula choose anchors in `anchor_weights`: at random, or from the likelihood of the shots.
    """

    settings: tuple[str, ...] = ()
    of_cosines: CosineWeights | None = None


WEIGHTINGS = {
    "none": Weighting(),
    "similarity": Weighting(("top_k",), similarity_weights),
    "uniform": Weighting(("top_k",), lambda cosines: uniform_weights(len(cosines))),
    # the authors' code assigns the shares in reverse order
    "released": Weighting(("top_k",), lambda cosines: similarity_weights(cosines)[::-1]),
    "random": Weighting(("top_k",)),
    "evidence": Weighting(("top_k", "candidates", "sharpness", "scale")),
}
