"""Merging LoRAs exactly, reducing their rank, and averaging factors as the paper's authors do.

Merging happens in ΔW (`Σ w·s·B A`): ranks are concatenated, `A = [w_1 s_1 A_1; …]`, `B = [B_1, …]`. Averaging A and B
separately would add cross terms `B_i A_j` that are as large as the signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Factors, LoraWeights, merge_placements
from mta_cli.engine.lora.batched import stack_loras
from mta_cli.errors import IntegrityFault


def merge_loras(parts: Sequence[tuple[LoraWeights, float]]) -> LoraWeights | None:
    """One LoRA, float32 on the CPU with scale 1, whose ΔW is the weighted sum of the parts' ΔW; None for no parts.

    Parts may differ in rank, alpha and modules. Parts of weight zero are left out. Raises IntegrityFault if the shape
    of a module differs, as in LoRAs for different bases, or if parts act on different tokens.
    """
    parts = [(part, weight) for part, weight in parts if weight != 0.0 and part.factors]
    if not parts:
        return None
    # 1. by module, each part's A [rank, in], B [out, rank], and weight · scale, which will multiply A
    by_path: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    for part, weight in parts:
        for path, (a, b) in part.factors.items():
            by_path.setdefault(path, []).append((a.detach().cpu(), b.detach().cpu(), weight * part.scale))
    # 2. the factors of each module, concatenated along the rank
    factors = {path: _concatenate_ranks(path, found) for path, found in by_path.items()}
    return LoraWeights(factors, 1.0, merge_placements([part.placement for part, _ in parts]))


def _concatenate_ranks(path: str, parts: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    """`A [Σ rank, in]` with each part's rows scaled, and `B [out, Σ rank]`, both float32."""
    if len({(b.shape[0], a.shape[1]) for a, b, _ in parts}) > 1:
        raise IntegrityFault(
            f"these adapters cannot be merged: {path} does not have the same shape in all of them",
            hint="merge only adapters that were trained on the same base",
        )
    a, b = torch.cat([a for a, _, _ in parts]).float(), torch.cat([b for _, b, _ in parts], 1).float()
    scales = torch.cat([torch.full((a.shape[0], 1), scale) for a, _, scale in parts])  # [Σ rank, 1]
    return a.mul_(scales), b


def compress_to_rank(weights: LoraWeights, rank: int) -> LoraWeights:
    """The nearest LoRA (in Frobenius norm) of at most `rank`, by QR of the factors and an SVD of the small core.

    With `Aᵀ = Q_a R_a` and `B = Q_b R_b`, ΔW = Q_b(R_b R_aᵀ)Q_aᵀ needs an SVD of a matrix of the old rank only.
    """
    factors: Factors = {}
    for path, (a, b) in weights.factors.items():
        # 1. orthonormal bases of the inputs and outputs
        q_a, r_a = torch.linalg.qr(a.float().T)  # [in, r], [r, r]
        q_b, r_b = torch.linalg.qr(b.float())  # [out, r], [r, r]
        # 2. the main directions of the small core between them  [r, r]
        u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
        # 3. back to factors, the square root of each singular value on both sides  [rank, in], [out, rank]
        root = s[:rank].sqrt()
        factors[path] = ((root[:, None] * vh[:rank]) @ q_a.T, (q_b @ u[:, :rank]) * root)
    return LoraWeights(factors, weights.scale, weights.placement)


def keep_first_directions(weights: LoraWeights, rank: int) -> LoraWeights:
    """The LoRA cut to its first `rank` directions.

    If `compress_to_rank` made `weights`, the result is the nearest LoRA of at most that rank.
    """
    return replace(weights, factors={path: (a[:rank], b[:, :rank]) for path, (a, b) in weights.factors.items()})


def average_factors(anchors: Sequence[LoraWeights], weights: Sequence[float]) -> LoraWeights | None:
    """`A = Σ w·A_i` and `B = Σ w·s_i·B_i` with scale 1, as in the code of the paper's authors. This is not the weighted
    sum of the ΔW.

    Each anchor's own ΔW is scaled by the square of its weight, and cross terms are added. Missing modules and ranks
    count as zeros. None without anchors.
    """
    if not anchors:
        return None
    share = torch.tensor(list(weights))
    factors: Factors = {
        path: (torch.tensordot(share, a, 1), torch.tensordot(share, b, 1))  # [rank, in], [out, rank]
        for path, (a, b) in stack_loras(anchors, torch.device("cpu")).items()
    }
    return LoraWeights(factors, 1.0, merge_placements([anchor.placement for anchor in anchors]))
