"""A decoding batch: rows of several users in one pass of the Llama decoder, first their prompts, then token by token.

Behind the prefix that all prompts share, each prompt is padded on the left, so that every step adds the same column to
all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta_cli.engine.lora.batched import FrozenLoras
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import BatchedLora, LlamaDecoder


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and the number of its user among the batch's LoRAs."""

    prompt: Sequence[int]
    owner: int


class DecodingBatch:
    """Rows that are decoded together. What `cache` holds already is the prefix that all prompts share."""

    def __init__(
        self,
        decoder: LlamaDecoder,
        user_loras: Sequence[FrozenLoras],
        rows: Sequence[PromptRow],
        cache: KVCache,
    ) -> None:
        self._decoder, self._user_loras, self._rows, self._cache = decoder, user_loras, list(rows), cache
        self._shared, self._width = cache.length, max(len(row.prompt) for row in rows)
        self._prepare_rows()

    def prefill(self, batch_tokens: int) -> Tensor:
        """Run the prompts, about `batch_tokens` tokens in a pass; the logits [rows, vocabulary] that follow them."""
        step = max(1, batch_tokens // (self._width - self._shared))
        slices = [(first, min(first + step, len(self._rows))) for first in range(0, len(self._rows), step)]
        last = torch.cat([self._prefill_rows(first, end) for first, end in slices])  # [rows, width]
        self._cache.advance(self._width - self._shared)
        return self._decoder.logits(last, read_copies=True)

    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Run one more token of each row; the logits [rows, vocabulary] that follow."""
        decoder, past = self._decoder, self._cache.length
        # 1. embeddings of the new tokens  [rows, 1, width]
        x = decoder.embed(torch.tensor(tokens, device=decoder.device)[:, None])
        # 2. positions, without the padding on the left  [rows, 1]
        positions = past - self._pads[:, None]
        rope = decoder.rope(positions)
        mask = decoder.mask_windows(
            self._mask[..., : past + 1] if self._mask is not None else None,
            positions,
            self._column_positions[:, : past + 1],
        )
        # 3. all layers  [rows, 1, width]
        x = decoder.run_layers(x, rope, mask, loras=self._row_loras, past=self._cache, read_copies=True)
        self._cache.advance(1)
        return decoder.logits(x[:, -1], read_copies=True)

    def keep_alive_rows(self, alive: Sequence[int]) -> list[int]:
        """Drop all rows but `alive`. Returns which of the old rows each row is now."""
        order = compact_rows(alive)
        self._cache.keep_rows(order)
        self._rows = [self._rows[i] for i in order]
        self._prepare_rows()
        return order

    def _prepare_rows(self) -> None:
        """What every step needs of the present rows: their padding, LoRAs and mask."""
        decoder, device = self._decoder, self._decoder.device
        self._pads = torch.tensor([self._width - len(row.prompt) for row in self._rows], device=device)  # [rows]
        owners = [row.owner for row in self._rows]
        self._row_loras = [BatchedLora(one.factors_for_rows(owners)) for one in self._user_loras]
        columns = torch.arange(self._cache.capacity, device=device)
        behind_pads = (columns - self._pads[:, None]).clamp_(min=0)
        self._column_positions = torch.where(columns < self._shared, columns, behind_pads)  # [rows, capacity]
        self._mask: Tensor | None = None
        if bool(self._pads.any()):
            visible = self._token_mask(columns)  # [rows, capacity]
            self._mask = _additive_mask(~visible, decoder.dtype)[:, None, None, None]

    def _token_mask(self, columns: Tensor) -> Tensor:
        """Which of `columns` hold a token of each row, [rows, columns]."""
        return (columns < self._shared) | (columns >= self._shared + self._pads[:, None])

    def _prefill_rows(self, first: int, last: int) -> Tensor:
        """The last states [rows, width] of the prompts of some rows, whose keys and values go into the cache."""
        decoder, rows, pads = self._decoder, self._rows[first:last], self._pads[first:last]
        # 1. columns to run: behind the shared prefix and the padding that all of these rows have
        start = self._shared + int(pads.min())
        cache = self._cache.row_view(first, last, start)
        columns = torch.arange(self._width, device=decoder.device)
        key_positions = self._column_positions[first:last, : self._width]  # [rows, keys]
        positions = key_positions[:, start:]  # [rows, time]
        # 2. what each column sees: earlier tokens of its row; padding sees itself, so that its states stay finite
        is_token = self._token_mask(columns)[first:last]  # [rows, keys]
        visible = (columns[start:, None] >= columns) & is_token[:, None]  # [rows, time, keys]
        visible |= columns[start:, None] == columns
        # 3. tokens, padded on the left  [rows, time]
        ids = torch.zeros(positions.shape, dtype=torch.long)
        for r, row in enumerate(rows):
            text = row.prompt[self._shared :]
            ids[r, ids.shape[1] - len(text) :] = torch.tensor(text)
        # 4. all layers  [rows, time, width]
        lengths = [len(row.prompt) for row in rows]
        x = decoder.run_layers(
            decoder.embed(ids.to(decoder.device)),
            decoder.rope(positions),
            decoder.mask_windows(_additive_mask(~visible, decoder.dtype)[:, None, None], positions, key_positions),
            loras=[one.rows_lora([row.owner for row in rows], positions, lengths) for one in self._user_loras],
            past=cache,
            read_copies=True,
        )
        return x[:, -1]


def compact_rows(alive: Sequence[int]) -> list[int]:
    """Which of the old rows each row is, once only `alive` are left: the last ones fill the places of dropped ones.

    So few rows of a cache are copied, and `order[i] >= i`.
    """
    holes = sorted(set(range(len(alive))).difference(alive))
    order = list(range(len(alive)))
    for hole, row in zip(holes, (row for row in alive if row >= len(alive)), strict=True):
        order[hole] = row
    return order


def _additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
