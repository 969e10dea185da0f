"""A few numbers for each person between frozen factors, so that a whole stack takes some hundred bytes.

`ΔW = s · B_f C A_f` for every module of a frozen `basis`, where C alone is the person's: a full matrix (`core`, as in
LoRA-XS, arXiv 2405.17604), a diagonal (`gains`), or one diagonal for all modules (`code`). Knows neither users nor
files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import Factors, LoraWeights
from mta_cli.engine.lora.batched import owner_blocks
from mta_cli.engine.lora.merge import compress_to_rank, merge_loras
from mta_cli.errors import IntegrityFault

ANCHORS_PER_MERGE, MAX_CARRIED_RANK = 64, 256
_READAPT_HINT = "adapt the user again"

CoreKind = Literal["core", "gains", "code"]


def bank_basis(anchors: Sequence[LoraWeights], rank: int) -> LoraWeights | None:
    """The main `rank` directions of the anchors' sum, or as many as every module has; None where there is nothing.

    Of more than `PORTION` anchors only the main `KEPT` directions go on from portion to portion.
    Its norm is the root mean square of the anchors', so that numbers near 1 move a model as far as an anchor does.
    """
    joint: LoraWeights | None = None
    for start in range(0, len(anchors), ANCHORS_PER_MERGE):
        before = [(compress_to_rank(joint, MAX_CARRIED_RANK), 1.0)] if joint is not None else []
        joint = merge_loras([*before, *((anchor, 1.0) for anchor in anchors[start : start + ANCHORS_PER_MERGE])])
    if joint is None:
        return None
    main = compress_to_rank(joint, rank)
    main = _slice_rank(main, min(len(a) for a, _ in main.factors.values()))
    if main.norm() == 0.0:
        return None
    typical = (sum(anchor.norm() ** 2 for anchor in anchors) / len(anchors)) ** 0.5
    return LoraWeights(main.factors, main.scale * typical / main.norm(), main.placement)


def truncate_basis(basis: LoraWeights, rank: int) -> LoraWeights:
    """The first `rank` directions of a basis, at the norm of all of them. IntegrityFault where these are nothing."""
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
    """What a person's numbers mean. They begin at nothing; `pull` × their mean square joins the loss in training."""

    basis: LoraWeights
    kind: CoreKind = "core"
    pull: float = 0.0

    @property
    def num_parameters(self) -> int:
        """How many numbers a person has."""
        return self.basis.rank if self.kind == "code" else sum(self._sizes())

    def factors(self, numbers: Tensor) -> Factors:
        """`A_f [… , rank, in]` and `s · B_f C [… , out, rank]` by path, for `numbers` `[… , count]`."""
        pieces = [numbers] * len(self.basis.factors) if self.kind == "code" else torch.split(numbers, self._sizes(), -1)
        found: Factors = {}
        for (path, (a, b)), own in zip(self._pairs(), pieces, strict=True):
            turned = b @ own.reshape(*own.shape[:-1], len(a), len(a)) if self.kind == "core" else b * own.unsqueeze(-2)
            found[path] = (a.expand(*numbers.shape[:-1], *a.shape), self.basis.scale * turned)
        return found

    def to_lora(self, numbers: Tensor) -> LoraWeights:
        """One person's ΔW, float32 with scale 1, for their `numbers` `[count]`."""
        return LoraWeights(
            self.to_device(torch.device("cpu")).factors(numbers.float().cpu()), 1.0, self.basis.placement
        )

    def to_device(self, device: torch.device) -> LoraXsCore:
        """The same with its basis in float32 on `device`."""
        whole = {path: (a.to(device, torch.float32), b.to(device, torch.float32)) for path, (a, b) in self._pairs()}
        return LoraXsCore(LoraWeights(whole, self.basis.scale, self.basis.placement), self.kind, self.pull)

    def _pairs(self) -> Iterable[tuple[str, tuple[Tensor, Tensor]]]:
        return self.basis.factors.items()

    def _sizes(self) -> list[int]:
        """How many of a person's numbers each module takes."""
        ranks = [len(a) for a, _ in self.basis.factors.values()]
        return [rank * rank for rank in ranks] if self.kind == "core" else ranks


def pack_core(numbers: Tensor) -> bytes:
    """Numbers as float16, little-endian. Raises IntegrityFault when one is not finite there."""
    half = numbers.detach().cpu().half()
    if not bool(torch.isfinite(half).all()):
        raise IntegrityFault("a core holds numbers that are not finite", hint="lower the learning rate")
    return half.numpy().astype("<f2").tobytes()


def unpack_core(basis: LoraWeights, packed: bytes) -> LoraWeights:
    """The ΔW that `pack_numbers` kept, between the first directions of `basis`; how many follows from the length.

    Raises IntegrityFault for bytes that are no core on this basis.
    """
    import numpy as np

    each, left = divmod(len(packed) // 2, max(1, len(basis.factors)))
    rank = math.isqrt(each)
    if len(packed) % 2 or left or rank**2 != each or not 0 < rank <= basis.rank:
        raise IntegrityFault(f"{len(packed)} bytes are no core on a basis of rank {basis.rank}", hint=_READAPT_HINT)
    numbers = torch.from_numpy(np.frombuffer(packed, "<f2").astype(np.float32))
    if not bool(torch.isfinite(numbers).all()):
        raise IntegrityFault("a core holds numbers that are not finite", hint=_READAPT_HINT)
    return LoraXsCore(truncate_basis(basis, rank)).to_lora(numbers)


class TrainableCores:
    """Numbers of many people that train together, `[people, count]`, float32; the place of a `parts.Group`."""

    def __init__(self, core: LoraXsCore, people: int, device: torch.device) -> None:
        self.core, self.placement = core.to_device(device), core.basis.placement
        self.numbers = torch.zeros(people, core.num_parameters, device=device)
        self.trainable, self.grads = [self.numbers], [torch.zeros_like(self.numbers)]

    def params_for_rows(self, owners: Sequence[int], dtype: torch.dtype) -> CoreParams:
        """Factors for rows of `owners` that gather gradients."""
        return CoreParams(self, owners, dtype)

    def add_penalty_grad(self) -> None:
        """Add the gradient of the pull towards nothing."""
        self.grads[0].add_(self.numbers, alpha=2 * self.core.pull / self.core.num_parameters)

    def user_weights(self, person: int) -> LoraWeights:
        """One person's ΔW as trained so far, float32 on the CPU."""
        return self.core.to_lora(self.numbers[person])

    def stored_weights(self, person: int) -> LoraWeights:
        """One person's ΔW as their bytes give it back. Raises IntegrityFault when a number is not finite there."""
        pack_core(self.numbers[person])
        return self.core.to_lora(self.numbers[person].half())

    def packed_core(self, person: int) -> bytes:
        """One person's numbers as they are kept."""
        return pack_core(self.numbers[person])


class CoreParams:
    """Copies of a group's numbers for the rows of one pass, one for each block."""

    def __init__(self, group: TrainableCores, owners: Sequence[int], dtype: torch.dtype) -> None:
        heads, _ = owner_blocks(owners)
        self._group, self._dtype, self._single = group, dtype, len(heads) == 1
        self._index = torch.tensor(heads, device=group.numbers.device)
        self._leaf = group.numbers[self._index].requires_grad_()

    def factors(self) -> Factors:
        """By path: `A [blocks, rank, in]` and scaled `B [blocks, out, rank]`; without the first axis for one block."""
        own = self._group.core.factors(self._leaf[0] if self._single else self._leaf)
        return {path: (a.to(self._dtype), b.to(self._dtype)) for path, (a, b) in own.items()}

    def accumulate_grads(self) -> None:
        """Add the leaf's gradient to the group's; call it after `backward`."""
        if self._leaf.grad is not None:
            self._group.grads[0].index_add_(0, self._index, self._leaf.grad)
