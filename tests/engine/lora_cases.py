"""Random LoRAs and rows for the tiny base, shared by the engine's tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.text.prompts import TrainingRow


def random_lora(
    model: nn.Module,
    seed: int,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    targets: str = "all-linear",
    placement: str = "all",
) -> LoraWeights:
    """A LoRA whose ΔW is not zero."""
    fresh = init_lora_weights(model, targets, placement, rank, alpha, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    factors = {path: (a, 0.05 * torch.randn(b.shape, generator=generator)) for path, (a, b) in fresh.factors.items()}
    return LoraWeights(factors, fresh.scale, fresh.placement)


def random_rows(lengths: Sequence[int], seed: int = 0, answer: int = 4) -> list[TrainingRow]:
    """Rows of random tokens, the last `answer` of each labelled."""
    generator = torch.Generator().manual_seed(seed)
    return [
        TrainingRow(tuple(torch.randint(3, 250, (length,), generator=generator).tolist()), length - answer)
        for length in lengths
    ]


def explicit_delta(parts: Sequence[tuple[LoraWeights, float]], path: str) -> Tensor:
    """Σ w · s · B A of one module, added up plainly in float64."""
    total = torch.zeros(())
    for part, weight in parts:
        if path in part.factors:
            a, b = part.factors[path]
            total = total + weight * part.scale * (b.double() @ a.double())
    return total


def difference(ours: LoraWeights | None, theirs: LoraWeights | None) -> float:
    """Relative Frobenius difference of ΔW over all modules, which have to be the same."""
    assert ours is not None and theirs is not None and list(ours.factors) == list(theirs.factors)
    off = sum(float((ours.delta_weight(path) - theirs.delta_weight(path)).square().sum()) for path in theirs.factors)
    return float(off**0.5 / theirs.norm())
