"""A key–value cache of fixed places for the plain decoder: one row for each text, written in place. Knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.model.llama import LlamaDecoder

INITIAL_CAPACITY = 256  # positions that a cache has room for at first; it doubles when they are used up


class KVCache:
    """Keys and values [layers, 2, rows, kv heads, room, head width]; the first `length` positions of `rows` are taken.

    What stands behind them is never read. `advance` after each pass through all layers.
    """

    def __init__(self, plain: LlamaDecoder, rows: int = 1, room: int = INITIAL_CAPACITY) -> None:
        block = torch.zeros(
            len(plain.layers), 2, rows, plain.kv_heads, room, plain.head_dim, dtype=plain.dtype, device=plain.device
        )  # zeros, since places that padding leaves free are multiplied by an attention of zero
        self._take(block, 0)

    def _take(self, block: Tensor, length: int) -> None:
        self._block, self.length = block, length
        self._layers = [(layer[0], layer[1]) for layer in block]

    @property
    def capacity(self) -> int:
        """How many positions a row has."""
        return self._block.shape[4]

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KeyValues`."""
        new = k.shape[2]
        keys, values = self._layers[layer]
        keys.narrow(2, self.length, new).copy_(k)
        values.narrow(2, self.length, new).copy_(v)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)

    def advance(self, new: int) -> None:
        """The next `new` positions are taken in every layer."""
        self.length += new

    def reserve(self, new: int) -> None:
        """Have room for `new` more positions."""
        room = self._block.shape[4]
        if self.length + new > room:
            wider = self._block.new_zeros(
                *self._block.shape[:4], _next_capacity(room, self.length + new), self._block.shape[5]
            )
            wider[:, :, :, :, : self.length] = self._block[:, :, :, :, : self.length]
            self._take(wider, self.length)

    def crop(self, surplus: int) -> None:
        """Free the last `-surplus` positions; negative, as transformers' caches have it."""
        self.length += surplus

    def row_view(self, first: int, last: int, length: int) -> KVCache:
        """Rows `first` to `last` (exclusive) of this cache, `length` positions of which are taken; memory is shared."""
        view = object.__new__(KVCache)
        view._take(self._block[:, :, first:last], length)
        return view

    def copy_prefix(self, other: KVCache) -> None:
        """Begin every row with the only row of `other`."""
        self._block[:, :, :, :, : other.length] = other._block[:, :, :1, :, : other.length]
        self.length = other.length

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row `i` becomes what row `order[i]` was, which must not be below `i`; the rest is given up."""
        for target, source in enumerate(order):
            if source != target:
                self._block[:, :, target, :, : self.length] = self._block[:, :, source, :, : self.length]
        self._take(self._block[:, :, : len(order)], self.length)


def _next_capacity(room: int, wanted: int) -> int:
    while room < wanted:
        room *= 2
    return room
