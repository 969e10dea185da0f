"""LoRA factors for continuous batching: for prompts, and for the rows of a decoding batch.

A user's factors are cast and fused once. In decoding, all LoRAs of a row act on every new token, so they are
concatenated into one pair of factors for each projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, Placement
from mta_cli.engine.lora.batched import fuse_factors, module_slices, require_fit
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.llama import BatchedLora, FusedFactors, LlamaDecoder


def fused_factors(decoder: LlamaDecoder, weights: LoraWeights | None) -> FusedFactors:
    """A LoRA's `A [in, rank]` and scaled `B [rank, Σ out]` by layer and projection, in the decoder's dtype."""
    if weights is None:
        return {}
    slices = module_slices(decoder, list(weights.factors))
    require_fit(slices, [weights])
    factors = {
        path: (a.to(decoder.device, decoder.dtype), (weights.scale * b.float()).to(decoder.device, decoder.dtype))
        for path, (a, b) in weights.factors.items()
    }
    return fuse_factors(slices, factors)


@dataclass(frozen=True, eq=False)  # compared by identity, because caches use the object as a key
class UserFactors:
    """One user's model as factors above the base.

    `shared` is the task adapter, one object for all users of a bank. `everywhere` acts on all tokens, `late` only from
    the first position of `late_placement`.
    """

    shared: FusedFactors
    everywhere: FusedFactors
    late: FusedFactors
    late_placement: Placement | None = None

    @classmethod
    def from_loras(cls, decoder: LlamaDecoder, loras: Sequence[LoraWeights], shared: FusedFactors) -> UserFactors:
        """Merge `loras` exactly, separately for all tokens and for late tokens, above the task adapter's factors."""
        everywhere = merge_loras([(one, 1.0) for one in loras if one.placement.late_tokens is None])
        late = merge_loras([(one, 1.0) for one in loras if one.placement.late_tokens is not None])
        where = late.placement if late is not None else None
        return cls(shared, fused_factors(decoder, everywhere), fused_factors(decoder, late), where)

    def reusable_length(self, prompt_length: int, length: int) -> int:
        """How many of a text's first `length` positions have states that other answers can reuse: those before the
        tokens on which a LoRA of placement `late` acts.
        """
        if self.late_placement is None:
            return length
        return min(length, self.late_placement.first_position(prompt_length))

    @cached_property
    def decoding_factors(self) -> FusedFactors:
        """`everywhere` and `late` concatenated: both act on each new token."""
        joined = dict(self.everywhere)
        for key, (a, b) in self.late.items():
            if key in joined:
                joined[key] = (torch.cat([joined[key][0], a], -1), torch.cat([joined[key][1], b], -2))
            else:
                joined[key] = (a, b)
        return joined

    @property
    def num_bytes(self) -> int:
        """The bytes of the user's own factors: `everywhere`, `late` and their concatenation, without `shared`."""
        return sum(_bytes(factors) for factors in (self.everywhere, self.late)) + (
            _bytes(self.decoding_factors) if self.everywhere and self.late else 0
        )


def _bytes(factors: FusedFactors) -> int:
    return sum(half.numel() * half.element_size() for pair in factors.values() for half in pair)


def prompt_loras(users: Sequence[UserFactors], prompts: Sequence[int], first: int, last: int) -> list[BatchedLora]:
    """The LoRAs for positions `first` to `last` (exclusive) of one text per user; `prompts[i]` counts prompt tokens."""
    rows = [RowFactors([user.shared for user in users]), RowFactors([user.everywhere for user in users])]
    loras = [one.batched_lora() for one in rows]
    clean = [user.reusable_length(prompt, last) for user, prompt in zip(users, prompts, strict=True)]
    late = RowFactors([user.late for user in users]).batched_lora()
    if late is not None and min(clean) < last:
        a, _ = next(iter(late.fused_factors.values()))
        acts = torch.arange(first, last) >= torch.tensor(clean)[:, None]  # [rows, time]
        loras.append(BatchedLora(late.fused_factors, acts.to(a.device, a.dtype).unsqueeze(-1)))
    return [one for one in loras if one is not None]


class RowFactors:
    """The factors of a batch's rows. If rows differ, their factors are in one tensor with a slot for each row, and a
    new row only writes its own slot.

    `dtype` is the number format of the result; None keeps the format of the given factors.
    """

    def __init__(self, rows: Sequence[FusedFactors] = (), dtype: torch.dtype | None = None) -> None:
        self._rows, self._dtype = list(rows), dtype
        self._same: tuple[FusedFactors, BatchedLora] | None = None  # factors that all rows shared last, and their LoRA
        self._written: list[FusedFactors | None] = []  # the factors in each slot
        self._slots: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._lora: BatchedLora | None = None  # the cached LoRA of all rows, until a row joins or leaves

    def add_rows(self, rows: Sequence[FusedFactors]) -> None:
        """Append rows of these factors."""
        self._rows += rows
        self._lora = None

    def keep_rows(self, order: Sequence[int]) -> None:
        """Move row `order[i]` to row `i`, with `order[i] >= i`; drop all other rows."""
        self._rows, self._lora = [self._rows[source] for source in order], None
        self._slots = {key: slots for key, slots in self._slots.items() if any(key in row for row in self._rows)}
        moves = [(target, source) for target, source in enumerate(order) if target != source < len(self._written)]
        for a_slots, b_slots in self._slots.values():
            for target, source in moves:
                a_slots[target], b_slots[target] = a_slots[source], b_slots[source]
        self._written = [self._written[source] if source < len(self._written) else None for source in order]

    def batched_lora(self) -> BatchedLora | None:
        """The LoRA of all rows: without a row axis if all rows have the same factors, None if no row has factors."""
        if self._lora is None and any(self._rows):
            if all(row is self._rows[0] for row in self._rows):
                if self._same is None or self._same[0] is not self._rows[0]:
                    cast = {key: (a.to(self._dtype), b.to(self._dtype)) for key, (a, b) in self._rows[0].items()}
                    self._same = self._rows[0], BatchedLora(cast)
                self._lora = self._same[1]
            else:
                self._write_slots()
                count = len(self._rows)
                self._lora = BatchedLora({key: (a[:count], b[:count]) for key, (a, b) in self._slots.items()})
        return self._lora

    def _write_slots(self) -> None:
        for row in self._rows:
            for key, (a, b) in row.items():
                self._make_room(key, a, b)
        for key, (a_slots, b_slots) in self._slots.items():
            for n, row in enumerate(self._rows):
                if n < len(self._written) and self._written[n] is row:
                    continue
                a_slots[n], b_slots[n] = 0.0, 0.0
                if key in row:
                    a, b = row[key]
                    a_slots[n, :, : a.shape[-1]], b_slots[n, : a.shape[-1]] = a, b
        self._written = [*self._rows]

    def _make_room(self, key: tuple[int, str], a: Tensor, b: Tensor) -> None:
        """Make slots for all rows, with at least the rank of `a` [in, rank] and `b` [rank, Σ out]."""
        known = self._slots.get(key)
        rank, before = a.shape[-1], 0 if known is None else known[0].shape[-1]
        if known is not None and rank <= before and len(self._rows) <= len(known[0]):
            return
        # slots up to the next power of two, so that joining rows seldom need new tensors
        most = 1 << (max(len(self._rows), len(known[0]) if known is not None else 0) - 1).bit_length()
        wide = max(rank, before)
        a_slots = a.new_zeros(most, a.shape[-2], wide, dtype=self._dtype)
        b_slots = b.new_zeros(most, wide, b.shape[-1], dtype=self._dtype)
        if known is not None:
            a_slots[: len(known[0]), :, :before], b_slots[: len(known[1]), :before] = known
        self._slots[key] = (a_slots, b_slots)
