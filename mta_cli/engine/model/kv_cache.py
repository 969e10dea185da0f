"""A key–value cache for the Llama decoder, allocated in advance and written in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.model.llama import LlamaDecoder, Masks, causal_mask


class KVCache:
    """Keys and values [layers, 2, rows, kv heads, positions, head width].

    Row `r` uses the first `lengths[r]` positions. A pass adds the same number of positions to all rows: call
    `begin_pass` before its layers and `advance` after them. A pass that fails in between changes nothing. Rows and
    positions (`capacity`) are doubled when they are used up.
    """

    def __init__(self, decoder: LlamaDecoder, rows: int, capacity: int) -> None:
        # Zeros, because attention gives the unused positions of a shorter row weight 0, and 0 × NaN would be NaN.
        shape = (len(decoder.layers), 2, rows, decoder.kv_heads, max(1, capacity), decoder.head_dim)
        self._decoder, self._block = decoder, torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)
        self._set_lengths([])

    def _set_lengths(self, lengths: list[int]) -> None:
        self.lengths = lengths
        rows = self._block[:, :, : len(lengths)]
        self._layers = [(layer[0], layer[1]) for layer in rows]
        flat = self._block.flatten(2, 4)  # [layers, 2, rows · kv heads · positions, head width], a view
        self._positions = [(layer[0], layer[1]) for layer in flat]

    @property
    def num_bytes(self) -> int:
        """The memory of the cache."""
        return self._block.numel() * self._block.element_size()

    def begin_pass(self, new: int) -> tuple[Tensor, Masks]:
        """Make room for `new` positions per row; returns these positions [rows or 1, new] and the attention mask of the
        pass.

        If rows have different lengths, `new` must be 1.
        """
        decoder, count, longest = self._decoder, len(self.lengths), max(self.lengths) + new
        self._reserve(count, longest)
        keys = torch.arange(longest, device=decoder.device)[None]
        mask, self._new, self._longest = None, new, longest
        # indices of the new positions in `_positions`, for rows of different lengths
        self._written: Tensor | None = None
        if min(self.lengths) + new == longest:
            positions = keys[:, longest - new :]
            if new > 1:
                mask = causal_mask(new, decoder.dtype, decoder.device)
                mask = torch.nn.functional.pad(mask, (longest - new, 0))
        else:
            assert new == 1
            positions = torch.tensor(self.lengths, device=decoder.device)[:, None]
            heads = torch.arange(count * decoder.kv_heads, device=decoder.device).view(count, -1)
            self._written = (heads * self._block.shape[4] + positions).flatten()  # [rows · kv heads]
            mask = torch.zeros(count, longest, dtype=decoder.dtype, device=decoder.device)
            mask = mask.masked_fill_(keys > positions, float("-inf"))[:, None, None, None]
        return positions, decoder.mask_windows(mask, positions, keys)

    def update_kv(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's `k`, `v` at the positions of `begin_pass`; see `PastKeyValues.update_kv`."""
        keys, values = self._layers[layer]
        if self._written is None:
            keys.narrow(2, self._longest - self._new, self._new).copy_(k)
            values.narrow(2, self._longest - self._new, self._new).copy_(v)
        else:
            for positions, new in zip(self._positions[layer], (k, v), strict=True):
                positions.index_copy_(0, self._written, new.reshape(-1, new.shape[-1]))
        return keys.narrow(2, 0, self._longest), values.narrow(2, 0, self._longest)

    def advance(self, new: int) -> None:
        """Add `new` to every row's length, after all layers have written these positions."""
        self.lengths = [length + new for length in self.lengths]

    def add_rows(self, other: KVCache) -> None:
        """Append the rows of `other`."""
        first, longest = len(self.lengths), max(other.lengths)
        lengths = self.lengths + other.lengths
        self._reserve(len(lengths), longest)
        added = other._block[:, :, : len(other.lengths), :, :longest]
        self._block[:, :, first : len(lengths), :, :longest] = added
        self._set_lengths(lengths)

    def fill_rows(self, rows: int, prefix: Tensor | None) -> None:
        """Begin with `rows` rows that each hold `prefix` (see `row_block`), or that are empty if it is None."""
        length = 0 if prefix is None else prefix.shape[3]
        if prefix is not None:
            self._block[:, :, :rows, :, :length] = prefix[:, :, None]
        self._set_lengths([length] * rows)

    def row_block(self, row: int, length: int) -> Tensor:
        """A copy of a row's first `length` keys and values, [layers, 2, kv heads, length, head width]."""
        return self._block[:, :, row, :, :length].clone()

    def keep_rows(self, order: Sequence[int]) -> None:
        """Move row `order[i]` to row `i`, with `order[i] >= i`; drop all other rows and fill them with zeros.

        Leftover numbers would be harmful: attention gives them weight 0, but 0 × inf is NaN.
        """
        for target, source in enumerate(order):
            if source != target:
                self._block[:, :, target] = self._block[:, :, source]
        self._block[:, :, len(order) : len(self.lengths)] = 0.0
        self._set_lengths([self.lengths[source] for source in order])

    def trim(self, rows: int, capacity: int) -> None:
        """Free the memory of unused rows and positions, but keep at least `rows` and `capacity`."""
        rows, capacity = max(rows, len(self.lengths)), max(capacity, *self.lengths, 0)
        self._block = self._block[:, :, :rows, :, :capacity].clone(memory_format=torch.contiguous_format)
        self._set_lengths(self.lengths)

    def _reserve(self, rows: int, capacity: int) -> None:
        shape = self._block.shape
        most_rows, most_positions = shape[2], shape[4]
        while most_rows < rows:
            most_rows *= 2
        while most_positions < capacity:
            most_positions *= 2
        if (most_rows, most_positions) != (shape[2], shape[4]):
            wider = self._block.new_zeros(*shape[:2], most_rows, shape[3], most_positions, shape[5])
            used = max(self.lengths, default=0)
            wider[:, :, : shape[2], :, :used] = self._block[:, :, :, :, :used]
            self._block = wider
            self._set_lengths(self.lengths)
