"""Cores: a small trained matrix for each module between frozen factors, so that a stack takes a few hundred bytes.

`ΔW = s · B_f C A_f` for every module of a frozen `basis`, where C alone is the user's (LoRA-XS, arXiv 2405.17604).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Factors, LoraWeights
from mta_cli.engine.lora.batched import owner_blocks
from mta_cli.engine.lora.merge import compress_to_rank, merge_loras
from mta_cli.errors import IntegrityFault

ANCHORS_PER_MERGE, MAX_CARRIED_RANK = 64, 256
_READAPT_HINT = "adapt the user again"


def bank_basis(anchors: Sequence[LoraWeights], rank: int) -> LoraWeights | None:
    """The main `rank` directions of the anchors' sum, or as many as every module has; None where the sum is zero.

    Its norm is the root mean square of the anchors', so that cores near 1 move a model as far as an anchor does.
    Anchors are added `ANCHORS_PER_MERGE` at a time; between additions the sum keeps its main `MAX_CARRIED_RANK`
    directions.
    """
    # 1. the sum of the anchors' ΔW, ranks concatenated: by module A [rank, in], B [out, rank]
    total: LoraWeights | None = None
    for start in range(0, len(anchors), ANCHORS_PER_MERGE):
        before = [(compress_to_rank(total, MAX_CARRIED_RANK), 1.0)] if total is not None else []
        total = merge_loras([*before, *((anchor, 1.0) for anchor in anchors[start : start + ANCHORS_PER_MERGE])])
    if total is None:
        return None
    # 2. its main directions, as many as every module has
    main = compress_to_rank(total, rank)
    main = _slice_rank(main, min(len(a) for a, _ in main.factors.values()))
    if main.norm() == 0.0:
        return None
    # 3. the scale at which their norm is the anchors' root mean square
    typical = (sum(anchor.norm() ** 2 for anchor in anchors) / len(anchors)) ** 0.5
    return LoraWeights(main.factors, main.scale * typical / main.norm(), main.placement)


def truncate_basis(basis: LoraWeights, rank: int) -> LoraWeights:
    """The first `rank` directions of a basis, at the norm of all of them. Raises IntegrityFault where they are 0."""
    if rank >= basis.rank:
        return basis
    narrow = _slice_rank(basis, rank)
    if narrow.norm() == 0.0:
        raise IntegrityFault("the directions that cores stand on come to nothing", hint=_READAPT_HINT)
    return LoraWeights(narrow.factors, basis.scale * basis.norm() / narrow.norm(), basis.placement)


def _slice_rank(weights: LoraWeights, rank: int) -> LoraWeights:
    factors = {path: (a[:rank], b[:, :rank]) for path, (a, b) in weights.factors.items()}
    return LoraWeights(factors, weights.scale, weights.placement)


@dataclass(frozen=True)
class LoraXsCore:
    """What a user's numbers mean. They start at zero; `pull` × their mean square is added to the loss in training."""

    basis: LoraWeights
    pull: float = 0.0

    @property
    def num_parameters(self) -> int:
        """How many numbers a user has."""
        return sum(self._sizes())

    def factors(self, numbers: Tensor) -> Factors:
        """`A_f [… , rank, in]` and `s · B_f C [… , out, rank]` by path, for `numbers` `[… , count]`."""
        leading = numbers.shape[:-1]
        factors: Factors = {}
        parts = torch.split(numbers, self._sizes(), -1)  # one a module, [… , rank²]
        for (path, (a, b)), part in zip(self.basis.factors.items(), parts, strict=True):
            core = part.reshape(*leading, len(a), len(a))  # [… , rank, rank]
            factors[path] = (a.expand(*leading, *a.shape), self.basis.scale * (b @ core))
        return factors

    def to_lora(self, numbers: Tensor) -> LoraWeights:
        """One user's ΔW, float32 with scale 1, for their `numbers` `[count]`."""
        return LoraWeights(
            self.to_device(torch.device("cpu")).factors(numbers.float().cpu()), 1.0, self.basis.placement
        )

    def to_device(self, device: torch.device) -> LoraXsCore:
        """The same with its basis in float32 on `device`."""
        factors = {
            path: (a.to(device, torch.float32), b.to(device, torch.float32))
            for path, (a, b) in self.basis.factors.items()
        }
        return LoraXsCore(LoraWeights(factors, self.basis.scale, self.basis.placement), self.pull)

    def _sizes(self) -> list[int]:
        """How many of a user's numbers each module takes."""
        return [len(a) ** 2 for a, _ in self.basis.factors.values()]


def pack_core(numbers: Tensor) -> bytes:
    """Numbers as float16, little-endian. Raises IntegrityFault when one is not finite there."""
    half = numbers.detach().cpu().half()
    if not bool(torch.isfinite(half).all()):
        raise IntegrityFault("a core holds numbers that are not finite", hint="lower the learning rate")
    return half.numpy().astype("<f2").tobytes()


def unpack_core(basis: LoraWeights, packed: bytes) -> LoraWeights:
    """The ΔW of numbers that `pack_core` packed, on the first directions of `basis`; the length says how many.

    Raises IntegrityFault for bytes that are no core on this basis.
    """
    each, left = divmod(len(packed) // 2, max(1, len(basis.factors)))
    rank = math.isqrt(each)
    if len(packed) % 2 or left or rank**2 != each or not 0 < rank <= basis.rank:
        raise IntegrityFault(f"{len(packed)} bytes are no core on a basis of rank {basis.rank}", hint=_READAPT_HINT)
    numbers = torch.from_numpy(np.frombuffer(packed, "<f2").astype(np.float32))
    if not bool(torch.isfinite(numbers).all()):
        raise IntegrityFault("a core holds numbers that are not finite", hint=_READAPT_HINT)
    return LoraXsCore(truncate_basis(basis, rank)).to_lora(numbers)


class TrainableCores:
    """Cores of many users that train together, `[users, count]`, float32; trained as `TrainableLoras` are."""

    def __init__(self, core: LoraXsCore, users: int, device: torch.device) -> None:
        self.core, self.placement = core.to_device(device), core.basis.placement
        self.numbers = torch.zeros(users, core.num_parameters, device=device)
        self.trainable, self.grads = [self.numbers], [torch.zeros_like(self.numbers)]

    def params_for_rows(self, owners: Sequence[int], dtype: torch.dtype) -> CoreParams:
        """Factors for rows of users `owners`, as leaves that collect gradients."""
        return CoreParams(self, owners, dtype)

    def add_penalty_grad(self) -> None:
        """Add the gradient of the pull towards zero."""
        self.grads[0].add_(self.numbers, alpha=2 * self.core.pull / self.core.num_parameters)

    def user_weights(self, user: int) -> LoraWeights:
        """One user's ΔW as trained so far, float32 on the CPU."""
        return self.core.to_lora(self.numbers[user])

    def stored_weights(self, user: int) -> LoraWeights:
        """One user's ΔW as their bytes give it back. Raises IntegrityFault when a number is not finite there."""
        pack_core(self.numbers[user])
        return self.core.to_lora(self.numbers[user].half())

    def packed_core(self, user: int) -> bytes:
        """One user's numbers as they are kept."""
        return pack_core(self.numbers[user])


class CoreParams:
    """Copies of a group's cores for the rows of one pass, one for each block."""

    def __init__(self, group: TrainableCores, owners: Sequence[int], dtype: torch.dtype) -> None:
        blocks, _ = owner_blocks(owners)
        self._group, self._dtype, self._single = group, dtype, len(blocks) == 1
        self._index = torch.tensor(blocks, device=group.numbers.device)  # [blocks]
        self._leaf = group.numbers[self._index].requires_grad_()

    def factors(self) -> Factors:
        """By path: `A [blocks, rank, in]` and scaled `B [blocks, out, rank]`; without the first axis for one block."""
        factors = self._group.core.factors(self._leaf[0] if self._single else self._leaf)
        return {path: (a.to(self._dtype), b.to(self._dtype)) for path, (a, b) in factors.items()}

    def accumulate_grads(self) -> None:
        """Add the leaf's gradient to the group's; call it after `backward`."""
        if self._leaf.grad is not None:
            self._group.grads[0].index_add_(0, self._index, self._leaf.grad)
