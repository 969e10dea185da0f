"""Banks that cannot know anything, for methods to be measured against. Knows weights; neither people nor prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Factors, LoraWeights


def noise_like(weights: LoraWeights, seed: int) -> LoraWeights:
    """Gaussian factors of the same shapes; every module's ΔW has exactly the Frobenius norm that it has in `weights`.

    Float32 on the CPU, with the same scale and placement. Same seed, same numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    factors: Factors = {}
    for path in sorted(weights.factors):
        pair = weights.factors[path]
        a, b = (torch.randn(factor.shape, generator=generator, dtype=torch.float64) for factor in pair)
        b *= _norm(*pair) / _norm(a, b)
        factors[path] = (a.float(), b.float())
    return LoraWeights({path: factors[path] for path in weights.factors}, weights.scale, weights.placement)


def _norm(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norm of `B A`, from the factors' small Gram matrices."""
    a, b = a.cpu().double(), b.cpu().double()
    return ((a @ a.T) * (b.T @ b)).sum().clamp_min(0.0).sqrt()
