"""LoRA factors of the rows of a batch that rows join and leave, and of one user's prompt.

A user's factors are cast and fused once. While a batch decodes, every LoRA of a row acts on every new token, so a row
has one pair of factors for each projection, whatever LoRAs it is made of.
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
    """A LoRA's `A [in, rank]` and scaled `B [rank, Σ out]` by layer and projection, in the decoder's number format."""
    if weights is None:
        return {}
    slices = module_slices(decoder, list(weights.factors))
    require_fit(slices, [weights])
    factors = {
        path: (a.to(decoder.device, decoder.dtype), (weights.scale * b.float()).to(decoder.device, decoder.dtype))
        for path, (a, b) in weights.factors.items()
    }
    return fuse_factors(slices, factors)


@dataclass(frozen=True, eq=False)  # one object is one user's model: caches know it by identity
class UserFactors:
    """One user's model as factors above the base.

    `shared` is the task adapter, one object for all users of a bank; `everywhere` acts on all tokens, and `late` from
    `late_placement` on.
    """

    shared: FusedFactors
    everywhere: FusedFactors
    late: FusedFactors
    late_placement: Placement | None = None

    @classmethod
    def from_loras(cls, decoder: LlamaDecoder, loras: Sequence[LoraWeights], shared: FusedFactors) -> UserFactors:
        """The exact merge of `loras` by the tokens that they act on, above the task adapter's factors."""
        everywhere = merge_loras([(one, 1.0) for one in loras if one.placement.late_tokens is None])
        late = merge_loras([(one, 1.0) for one in loras if one.placement.late_tokens is not None])
        where = late.placement if late is not None else None
        return cls(shared, fused_factors(decoder, everywhere), fused_factors(decoder, late), where)

    def prompt_loras(self, first: int, last: int, prompt: int, dtype: torch.dtype) -> list[BatchedLora]:
        """The LoRAs of positions `first` to `last` (exclusive) of a text of `prompt` prompt tokens, one row."""
        loras = [BatchedLora(factors) for factors in (self.shared, self.everywhere) if factors]
        if self.late_placement is not None and last > (start := self.late_placement.first_position(prompt)):
            acts = torch.arange(first, last) >= start
            device = next(iter(self.late.values()))[0].device
            loras.append(BatchedLora(self.late, acts.to(device, dtype)[None, :, None]))
        return loras

    def reusable_length(self, prompt: int, length: int) -> int:
        """How many of a text's first `length` positions no late LoRA has touched."""
        if self.late_placement is None:
            return length
        return min(length, self.late_placement.first_position(prompt))

    @cached_property
    def decoding_factors(self) -> FusedFactors:
        """`everywhere` and `late` side by side: what the user adds to each new token."""
        joined = dict(self.everywhere)
        for key, (a, b) in self.late.items():
            if key in joined:
                joined[key] = (torch.cat([joined[key][0], a], -1), torch.cat([joined[key][1], b], -2))
            else:
                joined[key] = (a, b)
        return joined

    @property
    def num_bytes(self) -> int:
        """The memory of the user's own factors."""
        return sum(_bytes(factors) for factors in (self.everywhere, self.late)) + (
            _bytes(self.decoding_factors) if self.everywhere and self.late else 0
        )


def _bytes(factors: FusedFactors) -> int:
    return sum(half.numel() * half.element_size() for pair in factors.values() for half in pair)


class RowFactors:
    """The factors of a batch's rows in slots: a row that joins writes its own slot and no other."""

    def __init__(self) -> None:
        self._users: list[UserFactors] = []
        self._slots: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._shared: BatchedLora | None = None

    def add_row(self, user: UserFactors) -> None:
        """Append a row of this user."""
        row = len(self._users)
        self._users.append(user)
        for key, (a, b) in user.decoding_factors.items():
            self._make_room(key, row + 1, a, b)
        for key, (a_slots, b_slots) in self._slots.items():
            self._make_room(key, row + 1, a_slots[0], b_slots[0])
            self._write(key, row, user)
        self._shared = _shared_lora(self._users)

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row `i` becomes what row `order[i]` was, where `order[i] >= i`; other rows are dropped."""
        for a_slots, b_slots in self._slots.values():
            for target, source in enumerate(order):
                if source != target:
                    a_slots[target], b_slots[target] = a_slots[source], b_slots[source]
        self._users = [self._users[source] for source in order]
        self._slots = {
            key: slots for key, slots in self._slots.items() if any(key in u.decoding_factors for u in self._users)
        }
        self._shared = _shared_lora(self._users)

    def batched_loras(self) -> list[BatchedLora]:
        """The LoRAs of all rows."""
        count = len(self._users)
        own = {key: (a[:count], b[:count]) for key, (a, b) in self._slots.items()}
        return [one for one in (self._shared, BatchedLora(own) if own else None) if one is not None]

    def _make_room(self, key: tuple[int, str], rows: int, a: Tensor, b: Tensor) -> None:
        """Slots for `rows` rows of the rank of `a` [in, rank] and `b` [rank, Σ out], or more."""
        known = self._slots.get(key)
        rank, before = a.shape[-1], 0 if known is None else known[0].shape[-1]
        if known is not None and rank <= before and rows <= len(known[0]):
            return
        most = 1 << (max(rows, len(known[0]) if known is not None else 0) - 1).bit_length()
        wide = max(rank, before)
        a_slots, b_slots = a.new_zeros(most, a.shape[-2], wide), b.new_zeros(most, wide, b.shape[-1])
        if known is not None:
            a_slots[: len(known[0]), :, :before], b_slots[: len(known[1]), :before] = known
        self._slots[key] = (a_slots, b_slots)

    def _write(self, key: tuple[int, str], row: int, user: UserFactors) -> None:
        a_slots, b_slots = self._slots[key]
        a_slots[row], b_slots[row] = 0.0, 0.0
        if key in user.decoding_factors:
            a, b = user.decoding_factors[key]
            a_slots[row, :, : a.shape[-1]], b_slots[row, : a.shape[-1]] = a, b


def _shared_lora(users: Sequence[UserFactors]) -> BatchedLora | None:
    """The task adapters of all rows: one pair of factors where all rows have the same."""
    if not users or not any(user.shared for user in users):
        return None
    if all(user.shared is users[0].shared for user in users):
        return BatchedLora(users[0].shared)
    slots = RowFactors()
    for user in users:
        slots.add_row(UserFactors({}, user.shared, {}))
    return slots.batched_loras()[0]
