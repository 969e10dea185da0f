"""A key–value cache of rows that begin and end at different times: each row has its own length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import LlamaDecoder

INITIAL_ROWS, INITIAL_POSITIONS = 4, 256  # what a cache has room for at first; both double when they are used up


class RowKVCache:
    """Keys and values [layers, 2, rows, kv heads, positions, head width]; row `r` uses the first `lengths[r]`.

    A pass adds one position to every row in use. Call `advance` after each pass through all layers.
    """

    def __init__(self, decoder: LlamaDecoder) -> None:
        # Zeros, because attention multiplies the positions that a shorter row leaves free by zero.
        shape = (len(decoder.layers), 2, INITIAL_ROWS, decoder.kv_heads, INITIAL_POSITIONS, decoder.head_dim)
        self._dtype, self._device = decoder.dtype, decoder.device
        self.lengths: list[int] = []
        self._set_block(torch.zeros(shape, dtype=decoder.dtype, device=decoder.device))

    def _set_block(self, block: Tensor) -> None:
        self._block = block
        self._layers = [(layer[0], layer[1]) for layer in block]

    @property
    def num_bytes(self) -> int:
        """The memory of the cache."""
        return self._block.numel() * self._block.element_size()

    def begin_step(self) -> Tensor | None:
        """Make room for one position a row; the mask [rows, 1, 1, 1, positions] of the next pass, None for none."""
        count, longest = len(self.lengths), max(self.lengths) + 1
        self._reserve(count, longest)
        self._rows = torch.arange(count, device=self._device)
        self._next = torch.tensor(self.lengths, device=self._device)
        self._longest = longest
        if min(self.lengths) + 1 == longest:
            return None
        hidden = torch.arange(longest, device=self._device) > self._next[:, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, float("-inf"))
        return mask[:, None, None, None]

    @property
    def positions(self) -> Tensor:
        """The position [rows, 1] of the token that the next pass adds to each row."""
        return self._next[:, None]

    @property
    def key_positions(self) -> Tensor:
        """The positions [1, positions] of all keys of the next pass."""
        return torch.arange(self._longest, device=self._device)[None]

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `PastKeyValues`; `k` and `v` are of one new position a row."""
        keys, values = self._layers[layer]
        keys[self._rows, :, self._next] = k[:, :, 0]
        values[self._rows, :, self._next] = v[:, :, 0]
        count = len(self.lengths)
        return keys[:count, :, : self._longest], values[:count, :, : self._longest]

    def advance(self) -> None:
        """Count the position that every layer has written in every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def add_row(self, cache: KVCache) -> int:
        """Append the only row of `cache` as a row; returns its number."""
        row = len(self.lengths)
        self._reserve(row + 1, cache.length)
        self._block[:, :, row, :, : cache.length] = cache.row_block(cache.length)
        self.lengths.append(cache.length)
        return row

    def row_block(self, row: int, length: int) -> Tensor:
        """A copy of a row's first `length` positions [layers, 2, kv heads, length, head width]."""
        return self._block[:, :, row, :, :length].clone()

    def keep_rows(self, order: Sequence[int]) -> None:
        """Row `i` becomes what row `order[i]` was, where `order[i] >= i`; other rows are dropped, and zeros again.

        Attention multiplies what is left in a row by zero, which a number that is not finite would survive.
        """
        used = [length + 1 for length in self.lengths]  # a step that failed may have written one more
        for row in set(range(len(used))).difference(order):
            self._block[:, :, row, :, : used[row]] = 0.0
        for target, source in enumerate(order):
            if source != target:
                length = self.lengths[source]
                self._block[:, :, target, :, :length] = self._block[:, :, source, :, :length]
                self._block[:, :, source, :, : used[source]] = 0.0
        self.lengths = [self.lengths[source] for source in order]

    def trim(self) -> None:
        """Give back the memory of rows and positions that are not in use."""
        rows, positions = max(INITIAL_ROWS, len(self.lengths)), max(INITIAL_POSITIONS, *self.lengths, 0)
        block = self._block[:, :, :rows, :, :positions].clone()
        self._set_block(block)

    def _reserve(self, rows: int, positions: int) -> None:
        shape = self._block.shape
        most_rows, most_positions = shape[2], shape[4]
        while most_rows < rows:
            most_rows *= 2
        while most_positions < positions:
            most_positions *= 2
        if (most_rows, most_positions) != (shape[2], shape[4]):
            wider = self._block.new_zeros(*shape[:2], most_rows, shape[3], most_positions, shape[5])
            used = max(self.lengths, default=0)
            wider[:, :, : shape[2], :, :used] = self._block[:, :, :, :, :used]
            self._set_block(wider)
