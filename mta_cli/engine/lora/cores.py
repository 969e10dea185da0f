"""Stacks of earlier versions ("cores"): for each module a small matrix between frozen factors that a bank's users
share.

`ΔW = s · B_f C A_f` for every module of a `basis`, where only C belongs to the user (LoRA-XS, arXiv 2405.17604).
Users with a stored core can still get answers; no new cores are trained.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.errors import Command, IntegrityFault

_HINT = ("train it again: ", Command("user adapt"))


def unpack_core(basis: LoraWeights, packed: bytes) -> LoraWeights:
    """The ΔW of a core as a LoRA, float32 with scale 1.

    A core of smaller rank than `basis` uses only the first directions of the basis, scaled to the norm of the whole
    basis.

    `packed` holds `C [rank, rank]` of every module, float16, little-endian; its length gives the rank. Raises
    IntegrityFault for bytes that are not a core on this basis.
    """
    # 1. rank and numbers
    each, left = divmod(len(packed) // 2, max(1, len(basis.factors)))
    rank = math.isqrt(each)
    if len(packed) % 2 or left or rank**2 != each or not 0 < rank <= basis.rank:
        raise IntegrityFault(
            f"the stored stack is damaged: {len(packed)} bytes are not one square matrix for each module", hint=_HINT
        )
    numbers = torch.from_numpy(np.frombuffer(packed, "<f2").astype(np.float32))
    if not bool(torch.isfinite(numbers).all()):
        raise IntegrityFault("the stored stack is damaged: it has numbers that are not finite", hint=_HINT)
    # 2. the first directions, scaled to the norm of all
    factors = {path: (a[:rank].float(), b[:, :rank].float()) for path, (a, b) in basis.factors.items()}
    narrow = LoraWeights(factors, basis.scale, basis.placement)
    if narrow.norm() == 0.0:
        raise IntegrityFault("the stored stack cannot be used: the bank's factors below it are all zero", hint=_HINT)
    scale = basis.scale * (basis.norm() / narrow.norm() if rank < basis.rank else 1.0)
    # 3. one C between the factors of each module
    cores = numbers.reshape(len(factors), rank, rank)
    found = {path: (a, scale * (b @ c)) for (path, (a, b)), c in zip(factors.items(), cores, strict=True)}
    return LoraWeights(found, 1.0, basis.placement)
