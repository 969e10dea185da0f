"""Many people's LoRAs side by side: stacked factors, and the parts that the rows of one batch need.

A person is a number here; a row says whose it is. Weights that train are `Group`, weights that do not are `Crowd`.
Knows neither prompts nor files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from mta_cli.engine.lora.adapter import Factors, LoraWeights, merge_placements
from mta_cli.engine.model.llama import FusedFactors, LlamaDecoder
from mta_cli.errors import IntegrityFault

PROJECTION_BY_MODULE = {
    "self_attn.q_proj": "qkv",
    "self_attn.k_proj": "qkv",
    "self_attn.v_proj": "qkv",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate_up",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}
_PATH = re.compile(r"model\.layers\.(\d+)\.(\w+\.\w+)")


@dataclass(frozen=True)
class ModuleSlice:
    """Where a module stands in the plain decoder: its layer, its joint projection, and its share of the output.

    `shape` is (out, in), as the module's weight has it.
    """

    layer: int
    projection: str
    columns_before: int
    columns_after: int
    shape: tuple[int, int]


def module_slices(plain: LlamaDecoder, paths: Sequence[str]) -> dict[str, ModuleSlice]:
    """The place of each module path. IntegrityFault when the base has no such module."""
    found = {}
    for path in paths:
        match = _PATH.fullmatch(path)
        joint = PROJECTION_BY_MODULE.get(match[2]) if match is not None else None
        if match is None or joint is None or int(match[1]) >= len(plain.layers):
            raise IntegrityFault(f"this base has no layer {path}", hint="the adapter is for another base")
        layer, kin = int(match[1]), [member for member, other in PROJECTION_BY_MODULE.items() if other == joint]
        modules = plain.layers[layer].projections[joint].modules
        widths, own = [module.out_features for module in modules], kin.index(match[2])
        shape = (widths[own], modules[own].in_features)
        found[path] = ModuleSlice(layer, joint, sum(widths[:own]), sum(widths[own + 1 :]), shape)
    return found


def require_fit(where: Mapping[str, ModuleSlice], weights: Sequence[LoraWeights | None]) -> None:
    """IntegrityFault when somebody's ΔW has another shape than the module that it is for."""
    for one in weights:
        for path, (a, b) in (one.factors if one is not None else {}).items():
            if (shape := (b.shape[0], a.shape[1])) != where[path].shape:
                raise IntegrityFault(
                    f"{path}: ΔW {shape} does not fit the base's {where[path].shape}",
                    hint="the adapter is for another base",
                )


def fuse_factors(where: Mapping[str, ModuleSlice], factors: Mapping[str, tuple[Tensor, Tensor]]) -> FusedFactors:
    """Pairs for `Parts` from `A [… , rank, in]` and `B [… , out, rank]` by path; scales are inside B already."""
    grouped: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}
    for path, (a, b) in factors.items():
        place = where[path]
        wide = F.pad(
            b.mT, (place.columns_before, place.columns_after)
        )  # […, rank, Σ out]: zeros where other modules answer
        grouped.setdefault((place.layer, place.projection), []).append((a.mT, wide))
    return {
        key: pairs[0]
        if len(pairs) == 1
        else (torch.cat([a for a, _ in pairs], -1), torch.cat([b for _, b in pairs], -2))
        for key, pairs in grouped.items()
    }


def stack_loras(weights: Sequence[LoraWeights | None], device: torch.device) -> Factors:
    """Float32 `A [people, rank, in]` and scaled `B [people, out, rank]`; what somebody lacks is zeros."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for one in weights:
        for path, (a, b) in (one.factors if one is not None else {}).items():
            rank = max(a.shape[0], shapes.get(path, (0, 0, 0))[0])
            shapes[path] = (rank, a.shape[1], b.shape[0])
    result: Factors = {}
    for path, (rank, wide, out) in shapes.items():
        a_all = torch.zeros(len(weights), rank, wide, device=device)
        b_all = torch.zeros(len(weights), out, rank, device=device)
        for i, one in enumerate(weights):
            if one is not None and path in one.factors:
                a, b = one.factors[path]
                a_all[i, : a.shape[0]] = a.to(device, torch.float32)
                b_all[i, :, : a.shape[0]] = one.scale * b.to(device, torch.float32)
        result[path] = (a_all, b_all)
    return result


class FrozenLoras:
    """Frozen LoRAs of many people, one merged part each; None is the base as it is."""

    def __init__(self, plain: LlamaDecoder, weights: Sequence[LoraWeights | None]) -> None:
        placements = [one.placement for one in weights if one is not None]
        self.placement = merge_placements(placements) if placements else None
        paths = dict.fromkeys(path for one in weights if one is not None for path in one.factors)
        where = module_slices(plain, list(paths))
        require_fit(where, weights)
        factors = stack_loras(weights, plain.device)
        cast = {path: (a.to(plain.dtype), b.to(plain.dtype)) for path, (a, b) in factors.items()}
        self._pairs = fuse_factors(where, cast)

    def factors_for_rows(self, owners: Sequence[int]) -> FusedFactors:
        """The pairs for rows that belong to `owners`, one for each of their blocks; see `Parts`."""
        if not self._pairs:
            return {}
        heads, _ = owner_blocks(owners)
        if len(heads) == 1:
            return {key: (a[heads[0]], b[heads[0]]) for key, (a, b) in self._pairs.items()}
        index = torch.tensor(heads, device=next(iter(self._pairs.values()))[0].device)
        return {key: (a[index], b[index]) for key, (a, b) in self._pairs.items()}


def owner_blocks(owners: Sequence[int]) -> tuple[list[int], int]:
    """Cut rows into blocks of equally many neighbours with one owner: the owner of each block, and its rows."""
    runs = [len(list(run)) for _, run in groupby(owners)]
    rows = math.gcd(*runs)
    return list(owners[::rows]), rows


class TrainableLoras:
    """LoRAs of many people that train together: `A [people, rank, in]`, `B [people, out, rank]`, float32, one scale.

    All have the same modules and rank. Gradients gather in `grads` in the shapes of `trained`, which are all values, or
    with `frozen_a` every `B` alone (as in LoRA-FA, arXiv 2308.03303).
    """

    def __init__(self, weights: Sequence[LoraWeights], device: torch.device, *, frozen_a: bool = False) -> None:
        first = weights[0]
        self.frozen_a = frozen_a
        self.scale, self.placement, self.paths = first.scale, first.placement, list(first.factors)
        self.values = [
            torch.stack([one.factors[path][half].to(device, torch.float32) for one in weights])
            for path in self.paths
            for half in (0, 1)
        ]
        self.trainable = self.trainable_halves(self.values)
        self.grads = [torch.zeros_like(value) for value in self.trainable]

    def trainable_halves(self, halves: list[Tensor]) -> list[Tensor]:
        """Those that train among `halves`, which stand as in `values`: A, B, A, B, …"""
        return halves[1::2] if self.frozen_a else halves

    def params_for_rows(self, owners: Sequence[int], dtype: torch.dtype) -> LoraParams:
        """Factors for rows of `owners` that gather gradients."""
        return LoraParams(self, owners, dtype)

    def add_penalty_grad(self) -> None:
        """LoRAs are free: nothing pulls at them."""

    def stored_weights(self, person: int) -> LoraWeights:
        """One person's LoRA as its file gives it back. Raises IntegrityFault when a number is not finite there."""
        return self.user_weights(person).cast_for_storage()

    def user_weights(self, person: int) -> LoraWeights:
        """One person's LoRA as trained so far, float32 on the CPU."""
        halves = [value[person].detach().cpu().clone() for value in self.values]
        factors = {path: (halves[2 * i], halves[2 * i + 1]) for i, path in enumerate(self.paths)}
        return LoraWeights(factors, self.scale, self.placement)


class LoraParams:
    """Copies of a group's factors for the rows of one pass, one for each block, in the numbers that it computes in."""

    def __init__(self, group: TrainableLoras, owners: Sequence[int], dtype: torch.dtype) -> None:
        heads, _ = owner_blocks(owners)
        self._group, self.single = group, len(heads) == 1
        self._index = torch.tensor(heads, device=group.values[0].device)
        self._halves = [value[self._index].to(dtype) for value in group.values]
        self._leaves = [half.requires_grad_() for half in group.trainable_halves(self._halves)]

    def factors(self) -> Factors:
        """By path: `A [blocks, rank, in]` and scaled `B [blocks, out, rank]`; without the first axis for one block."""
        group, halves = self._group, [half[0] if self.single else half for half in self._halves]
        return {path: (halves[2 * i], halves[2 * i + 1] * group.scale) for i, path in enumerate(group.paths)}

    def accumulate_grads(self) -> None:
        """Add the leaves' gradients to the group's; call it after `backward`."""
        for total, leaf in zip(self._group.grads, self._leaves, strict=True):
            if leaf.grad is not None:
                total.index_add_(0, self._index, leaf.grad.float())
