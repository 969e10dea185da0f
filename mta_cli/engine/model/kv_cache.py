"""A key–value cache for the Llama decoder, allocated in advance and written in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.model.llama import LlamaDecoder

INITIAL_CAPACITY = 256  # positions that a cache has room for at first; it doubles when they are used up


class KVCache:
    """Keys and values [layers, 2, rows, kv heads, capacity, head width]; the first `length` positions are in use.

    Call `advance` after each pass through all layers.
    """

    def __init__(self, decoder: LlamaDecoder, rows: int = 1, capacity: int = INITIAL_CAPACITY) -> None:
        # Zeros, because attention multiplies the positions that padding leaves free by zero.
        shape = (len(decoder.layers), 2, rows, decoder.kv_heads, capacity, decoder.head_dim)
        self._set_block(torch.zeros(shape, dtype=decoder.dtype, device=decoder.device), 0)

    def _set_block(self, block: Tensor, length: int) -> None:
        self._block, self.length = block, length
        self._layers = [(layer[0], layer[1]) for layer in block]

    @property
    def capacity(self) -> int:
        """How many positions a row has."""
        return self._block.shape[4]

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `PastKeyValues`."""
        new = k.shape[2]
        keys, values = self._layers[layer]
        keys.narrow(2, self.length, new).copy_(k)
        values.narrow(2, self.length, new).copy_(v)
        return keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new)

    def advance(self, new: int) -> None:
        """Count the `new` positions that every layer has written."""
        self.length += new

    def reserve(self, new: int) -> None:
        """Grow until `new` more positions fit; the capacity doubles."""
        capacity = self.capacity
        while capacity < self.length + new:
            capacity *= 2
        if capacity > self.capacity:
            wider = self._block.new_zeros(*self._block.shape[:4], capacity, self._block.shape[5])
            wider[:, :, :, :, : self.length] = self._block[:, :, :, :, : self.length]
            self._set_block(wider, self.length)

    def crop(self, surplus: int) -> None:
        """Free the last `-surplus` positions; negative, as transformers' caches have it."""
        self.length += surplus

    def row_view(self, first: int, last: int, length: int) -> KVCache:
        """Rows `first` to `last` (exclusive) with `length` positions in use, as a view that shares memory."""
        view = object.__new__(KVCache)
        view._set_block(self._block[:, :, first:last], length)
        return view

    def copy_prefix(self, other: KVCache) -> None:
        """Copy the only row of `other` to the start of every row."""
        self._block[:, :, :, :, : other.length] = other._block[:, :, :1, :, : other.length]
        self.length = other.length

    def row_block(self, length: int) -> Tensor:
        """The first `length` positions of the only row [layers, 2, kv heads, length, head width], as a view."""
        return self._block[:, :, 0, :, :length]

    def fill_row(self, block: Tensor) -> None:
        """Make a `row_block` the content of the only row."""
        self._block[:, :, 0, :, : block.shape[3]] = block
        self.length = block.shape[3]

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row `i` becomes what row `order[i]` was, where `order[i] >= i`; other rows are dropped."""
        for target, source in enumerate(order):
            if source != target:
                self._block[:, :, target, :, : self.length] = self._block[:, :, source, :, : self.length]
        self._set_block(self._block[:, :, : len(order)], self.length)
