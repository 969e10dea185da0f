"""LoRAs of many users in one batch: factors stacked by user, and gathered for the rows of a pass.

Users are given by their index. Rows of the same user share factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from mta_cli.engine.lora.adapter import Factors, LoraWeights, merge_placements
from mta_cli.engine.model.llama import BatchedLora, FusedFactors, LlamaDecoder
from mta_cli.errors import IntegrityFault


@dataclass(frozen=True)
class ModuleSlice:
    """A module's place in the Llama decoder: its layer and fused projection, and how many output columns of the
    projection come before and after the module's own.

    `shape` is (out, in) of the module's weight.
    """

    layer: int
    projection: str
    columns_before: int
    columns_after: int
    shape: tuple[int, int]


def module_slices(decoder: LlamaDecoder, paths: Sequence[str]) -> dict[str, ModuleSlice]:
    """The slice of each module path. Raises IntegrityFault for a path that the base does not have."""
    places = {
        f"model.layers.{layer}.{name}": (layer, projection, index)
        for layer, one in enumerate(decoder.layers)
        for projection, names in one.spec.projections.items()
        for index, name in enumerate(names)
    }
    slices = {}
    for path in paths:
        if path not in places:
            raise IntegrityFault(f"this base has no layer {path}", hint="use the base on which the adapter was trained")
        layer, projection, index = places[path]
        modules = decoder.layers[layer].projections[projection].modules
        widths = [module.out_features for module in modules]
        shape = (widths[index], modules[index].in_features)
        slices[path] = ModuleSlice(layer, projection, sum(widths[:index]), sum(widths[index + 1 :]), shape)
    return slices


def require_fit(slices: Mapping[str, ModuleSlice], weights: Sequence[LoraWeights | None]) -> None:
    """Raises IntegrityFault if the shape of a user's ΔW differs from its module's."""
    for one in weights:
        for path, (a, b) in (one.factors if one is not None else {}).items():
            if (shape := (b.shape[0], a.shape[1])) != slices[path].shape:
                raise IntegrityFault(
                    f"{path}: the adapter's shape {shape} does not fit the base's {slices[path].shape}",
                    hint="use the base on which the adapter was trained",
                )


def fuse_factors(slices: Mapping[str, ModuleSlice], factors: Mapping[str, tuple[Tensor, Tensor]]) -> FusedFactors:
    """`A [… , in, rank]` and `B [… , rank, Σ out]` by layer and fused projection, for `BatchedLora`.

    `factors` are `A [… , rank, in]` and `B [… , out, rank]` by module path, with the scale inside B.
    """
    grouped: dict[tuple[int, str], list[tuple[Tensor, Tensor]]] = {}
    for path, (a, b) in factors.items():
        place = slices[path]
        # pad with zeros in the columns of the projection's other modules […, rank, Σ out]
        wide_b = F.pad(b.mT, (place.columns_before, place.columns_after))
        grouped.setdefault((place.layer, place.projection), []).append((a.mT, wide_b))
    # concatenate the modules of one projection along the rank
    return {
        key: pairs[0]
        if len(pairs) == 1
        else (torch.cat([a for a, _ in pairs], -1), torch.cat([b for _, b in pairs], -2))
        for key, pairs in grouped.items()
    }


def stack_loras(weights: Sequence[LoraWeights | None], device: torch.device) -> Factors:
    """Float32 `A [users, rank, in]` and scaled `B [users, out, rank]` by module path, padded with zeros.

    Each module has the largest rank among its users; a user without the module has zeros.
    """
    # 1. the shape of each module  (rank, in, out)
    shapes: dict[str, tuple[int, int, int]] = {}
    for one in weights:
        for path, (a, b) in (one.factors if one is not None else {}).items():
            rank = max(a.shape[0], shapes.get(path, (0, 0, 0))[0])
            shapes[path] = (rank, a.shape[1], b.shape[0])
    # 2. copy every user's factors into zeros of that shape
    stacked: Factors = {}
    for path, (rank, inputs, outputs) in shapes.items():
        a_all = torch.zeros(len(weights), rank, inputs, device=device)
        b_all = torch.zeros(len(weights), outputs, rank, device=device)
        for i, one in enumerate(weights):
            if one is not None and path in one.factors:
                a, b = one.factors[path]
                a_all[i, : a.shape[0]] = a.to(device, torch.float32)
                b_all[i, :, : a.shape[0]] = one.scale * b.to(device, torch.float32)
        stacked[path] = (a_all, b_all)
    return stacked


class FrozenLoras:
    """The frozen LoRA of each user; None for a user without one. All must act on the same tokens."""

    def __init__(self, decoder: LlamaDecoder, weights: Sequence[LoraWeights | None]) -> None:
        placements = [one.placement for one in weights if one is not None]
        self.placement, self._dtype = merge_placements(placements) if placements else None, decoder.dtype
        paths = dict.fromkeys(path for one in weights if one is not None for path in one.factors)
        slices = module_slices(decoder, list(paths))
        require_fit(slices, weights)
        factors = stack_loras(weights, decoder.device)
        cast = {path: (a.to(decoder.dtype), b.to(decoder.dtype)) for path, (a, b) in factors.items()}
        self._factors = fuse_factors(slices, cast)

    def rows_lora(self, owners: Sequence[int], positions: Tensor, prompt_lengths: Sequence[int]) -> BatchedLora:
        """The LoRA of each row's owner for `positions` [rows, time], with a mask of the tokens on which it acts."""
        factors = self.factors_for_rows(owners)
        if self.placement is None or self.placement.late_tokens is None:
            return BatchedLora(factors)
        starts = torch.tensor([self.placement.first_position(length) for length in prompt_lengths])
        late = positions >= starts.to(positions.device)[:, None]
        return BatchedLora(factors, late.unsqueeze(-1).to(self._dtype))  # [rows, time, 1]

    def factors_for_rows(self, owners: Sequence[int]) -> FusedFactors:
        """The factors for rows of users `owners`, by block of rows as in `BatchedLora`.

        There is no block axis if one user owns all rows. The result is empty if no user has a LoRA.
        """
        if not self._factors:
            return {}
        blocks, _ = owner_blocks(owners)
        if len(blocks) == 1:  # all rows share factors  [in, rank], [rank, Σ out]
            return {key: (a[blocks[0]], b[blocks[0]]) for key, (a, b) in self._factors.items()}
        index = torch.tensor(blocks, device=next(iter(self._factors.values()))[0].device)  # [blocks]
        return {key: (a[index], b[index]) for key, (a, b) in self._factors.items()}


def owner_blocks(owners: Sequence[int]) -> tuple[list[int], int]:
    """Divide rows into equal blocks of adjacent rows with one owner. Returns each block's owner, and the rows per
    block.
    """
    runs = [len(list(run)) for _, run in groupby(owners)]
    rows = math.gcd(*runs)
    return list(owners[::rows]), rows


class TrainableLoras:
    """LoRAs of many users that train together: `A [users, rank, in]`, `B [users, out, rank]`, float32, one scale.

    All have the same modules and rank. `trainable` and `grads` are ordered A, B, A, B, …
    """

    def __init__(self, weights: Sequence[LoraWeights], device: torch.device) -> None:
        first = weights[0]
        self.scale, self.placement, self.paths = first.scale, first.placement, list(first.factors)
        self.trainable = [
            torch.stack([one.factors[path][half].to(device, torch.float32) for one in weights])
            for path in self.paths
            for half in (0, 1)
        ]
        self.grads = [torch.zeros_like(value) for value in self.trainable]

    def params_for_rows(self, owners: Sequence[int], dtype: torch.dtype) -> LoraParams:
        """Factors for rows of users `owners`, as leaf tensors that collect gradients."""
        return LoraParams(self, owners, dtype)

    def stored_weights(self, user: int) -> LoraWeights:
        """One user's LoRA rounded to float16, as a file stores it. Raises IntegrityFault if a number overflows."""
        return self.user_weights(user).cast_for_storage()

    def user_weights(self, user: int) -> LoraWeights:
        """One user's LoRA as trained so far, float32 on the CPU."""
        halves = [value[user].detach().cpu().clone() for value in self.trainable]
        factors = {path: (halves[2 * i], halves[2 * i + 1]) for i, path in enumerate(self.paths)}
        return LoraWeights(factors, self.scale, self.placement)


class LoraParams:
    """Copies of a group's factors for one pass: leaf tensors, one copy for each block of rows, in the pass's dtype.

    After `backward`, `accumulate_grads` adds their gradients to the group's.
    """

    def __init__(self, group: TrainableLoras, owners: Sequence[int], dtype: torch.dtype) -> None:
        blocks, _ = owner_blocks(owners)
        self._group, self.single = group, len(blocks) == 1
        self._index = torch.tensor(blocks, device=group.trainable[0].device)  # [blocks]
        self._leaves = [value[self._index].to(dtype).requires_grad_() for value in group.trainable]

    def factors(self) -> Factors:
        """By path: `A [blocks, rank, in]` and scaled `B [blocks, out, rank]`; without the first axis for one block."""
        group, halves = self._group, [half[0] if self.single else half for half in self._leaves]
        return {path: (halves[2 * i], halves[2 * i + 1] * group.scale) for i, path in enumerate(group.paths)}

    def accumulate_grads(self) -> None:
        """Add the leaf tensors' gradients to the group's gradients; call it after `backward`."""
        for total, leaf in zip(self._group.grads, self._leaves, strict=True):
            if leaf.grad is not None:
                total.index_add_(0, self._index, leaf.grad.float())
