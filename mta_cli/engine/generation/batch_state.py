"""Rows of several people in one pass of the plain decoder: reading their prompts, then one token each at a time.

Behind what all prompts begin with, each is padded on the left, so that a pass adds the same
column to every row. Knows neither how tokens are chosen nor when an answer ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta_cli.engine.lora.batched import FrozenLoras
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import BatchedLora, LlamaDecoder, WeightFormat


@dataclass(frozen=True)
class PromptRow:
    """A prompt, and its person's number among the crowds."""

    prompt: Sequence[int]
    owner: int


class DecodingBatch:
    """Rows that are answered together. What `slots` hold already is what every prompt begins with.

    `shifts` [people, width] are added to the last normalised state of each person's rows.
    """

    def __init__(
        self,
        plain: LlamaDecoder,
        crowds: Sequence[FrozenLoras],
        rows: Sequence[PromptRow],
        slots: KVCache,
        shifts: Tensor | None = None,
    ) -> None:
        self._plain, self._crowds, self._rows, self._slots = plain, crowds, list(rows), slots
        self._shifts = shifts
        self._shared, self._width = slots.length, max(len(row.prompt) for row in rows)
        self._prepare_rows()

    def prefill(self, at_once: int) -> Tensor:
        """Run the prompts, about `at_once` tokens in a pass; the logits [rows, vocabulary] that follow them."""
        step = max(1, at_once // (self._width - self._shared))
        slices = [(first, min(first + step, len(self._rows))) for first in range(0, len(self._rows), step)]
        last = torch.cat([self._prefill_rows(first, end) for first, end in slices])
        self._slots.advance(self._width - self._shared)
        return self._logits(last, "packed")

    def decode_step(self, tokens: Sequence[int], read: WeightFormat = "packed") -> Tensor:
        """Run one more token of each row; the logits [rows, vocabulary] that follow."""
        plain, past = self._plain, self._slots.length
        x = plain.embed(torch.tensor(tokens, device=plain.device)[:, None])
        mask = self._mask[..., : past + 1] if self._mask is not None else None
        rope = plain.rope(past - self._pads[:, None])
        x = plain.run_layers(x, rope, mask, parts=self._acting, past=self._slots, read=read)
        self._slots.advance(1)
        return self._logits(x[:, -1], read)

    def keep_alive_rows(self, alive: Sequence[int]) -> list[int]:
        """Go on with rows `alive` only. Returns which of the old rows each row is now."""
        holes = sorted(set(range(len(alive))).difference(alive))
        order = list(range(len(alive)))
        for hole, row in zip(holes, (row for row in alive if row >= len(alive)), strict=True):
            order[hole] = row
        self._slots.keep_rows(order)
        self._rows = [self._rows[i] for i in order]
        self._prepare_rows()
        return order

    def _prepare_rows(self) -> None:
        """What each step needs of the rows that there are."""
        plain, device = self._plain, self._plain.device
        self._pads = torch.tensor([self._width - len(row.prompt) for row in self._rows], device=device)
        owners = [row.owner for row in self._rows]
        self._acting = [BatchedLora(crowd.factors_for_rows(owners)) for crowd in self._crowds]
        self._mask: Tensor | None = None
        if bool(self._pads.any()):
            seen = self._token_mask(torch.arange(self._slots.capacity, device=device))  # [rows, room]
            self._mask = _additive_mask(~seen, plain.dtype)[:, None, None, None]

    def _logits(self, last: Tensor, read: WeightFormat) -> Tensor:
        own = self._shifts[[row.owner for row in self._rows]] if self._shifts is not None else None
        return self._plain.logits(last, own, read)

    def _token_mask(self, columns: Tensor) -> Tensor:
        """Which of `columns` hold a token of each row, [rows, columns]."""
        return (columns < self._shared) | (columns >= self._shared + self._pads[:, None])

    def _prefill_rows(self, first: int, last: int) -> Tensor:
        """The last states [rows, width] of the prompts of some rows, whose keys and values are kept."""
        plain, rows, pads = self._plain, self._rows[first:last], self._pads[first:last]
        start = self._shared + int(pads.min())  # columns before it are padding in all of these rows
        slots = self._slots.row_view(first, last, start)
        columns = torch.arange(self._width, device=plain.device)
        positions = (columns[start:] - pads[:, None]).clamp_(min=0)  # [rows, time]
        own = self._token_mask(columns)[first:last]
        seen = (columns[start:, None] >= columns) & own[:, None]  # [rows, time, keys]
        seen |= columns[start:, None] == columns  # padding sees itself, so that its states stay numbers
        ids = torch.zeros(positions.shape, dtype=torch.long)
        for r, row in enumerate(rows):
            text = row.prompt[self._shared :]
            ids[r, ids.shape[1] - len(text) :] = torch.tensor(text)
        x = plain.run_layers(
            plain.embed(ids.to(plain.device)),
            plain.rope(positions),
            _additive_mask(~seen, plain.dtype)[:, None, None],
            parts=[self._prompt_loras(crowd, rows, positions) for crowd in self._crowds],
            past=slots,
            read="packed",
        )
        return x[:, -1]

    def _prompt_loras(self, crowd: FrozenLoras, rows: Sequence[PromptRow], positions: Tensor) -> BatchedLora:
        """The rows' parts of a crowd, at the positions [rows, time] of their prompts where they act."""
        pairs = crowd.factors_for_rows([row.owner for row in rows])
        if crowd.placement is None or crowd.placement.late_tokens is None:
            return BatchedLora(pairs)
        starts = [crowd.placement.first_position(len(row.prompt)) for row in rows]
        late = positions >= torch.tensor(starts, device=positions.device)[:, None]
        return BatchedLora(pairs, late.unsqueeze(-1).to(self._plain.dtype))


def _additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
