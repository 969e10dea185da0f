"""Continuous batching with the Llama decoder: prompts are read and join the batch as rows, which leave at their end.

Each row has its own user's LoRAs and its own length. Other rows affect a row's logits only through rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mta_cli.engine.lora.row_factors import RowFactors, UserFactors, prompt_loras
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import LlamaDecoder, Masks

INITIAL_ROWS, INITIAL_POSITIONS = 4, 256  # initial capacity of a batch


@dataclass(frozen=True)
class PromptText:
    """Tokens to read with a user's LoRAs. The first `prompt` tokens are the prompt, the rest belong to the answer.

    LoRAs that act on late tokens only need this boundary: they begin shortly before the end of the prompt.
    """

    user: UserFactors
    ids: Sequence[int]
    prompt: int


class PromptPass:
    """Reads several texts together, in pieces, after a common prefix that has been computed before.

    Shorter texts are padded on the right; attention is causal, so no real token attends to padding. `prefix` has the
    keys and values of the common prefix (see `KVCache.row_block`).
    """

    def __init__(self, decoder: LlamaDecoder, texts: Sequence[PromptText], prefix: Tensor | None = None) -> None:
        self.texts, self._decoder = texts, decoder
        self._width = max(len(text.ids) for text in texts)
        self.cache = KVCache(decoder, len(texts), self._width)
        self.cache.fill_rows(len(texts), prefix)
        self._last_states: dict[int, Tensor] = {}  # by text that is read to its end  [width] each

    @property
    def remaining(self) -> int:
        """The number of tokens of the longest text that are still unread."""
        return self._width - max(self.cache.lengths)

    @torch.inference_mode()
    def read(self, most: int) -> Tensor | None:
        """Read up to `most` tokens of each text. Returns the next-token logits [texts, vocabulary] once all texts are
        read.
        """
        first = self.cache.lengths[0]
        last = min(self._width, first + most)
        ids = torch.zeros(len(self.texts), last - first, dtype=torch.long)
        for row, text in enumerate(self.texts):
            piece = text.ids[first:last]
            ids[row, : len(piece)] = torch.tensor(piece)
        states = self._run(ids, *self.cache.begin_pass(last - first), first)
        self.cache.advance(last - first)
        for row, text in enumerate(self.texts):
            if first < len(text.ids) <= last:
                self._last_states[row] = states[row, len(text.ids) - first - 1]
        if last < self._width:
            return None
        self.cache.lengths = [len(text.ids) for text in self.texts]
        ends = torch.stack([self._last_states[row] for row in range(len(self.texts))])  # [texts, width]
        return self._decoder.logits(ends, read_copies=True)

    @torch.inference_mode()
    def completion_log_likelihoods(self, logits: Tensor, completions: Sequence[Sequence[int]]) -> list[float]:
        """The log-likelihood (nats) of each completion after the text of this pass, which must be its only text.

        `logits` [vocabulary] are the next-token logits after the text. All completions run in one pass; each attends to
        the text and to itself.
        """
        decoder, past = self._decoder, self.cache.lengths[0]
        first = torch.log_softmax(logits.float(), -1)
        scores = [float(first[one[0]]) for one in completions]
        # all but the last token of each completion, which is only predicted
        heads = [list(one[:-1]) for one in completions]
        ids = [token for head in heads for token in head]
        if not ids:
            return scores
        # 1. the completion and the position of each token  [time]
        owner = torch.tensor([n for n, head in enumerate(heads) for _ in head])
        offset = torch.tensor([place for head in heads for place in range(len(head))])
        # 2. the mask: a token attends to the text and to its own completion up to itself  [1, 1, 1, time, past + time]
        own = (owner[:, None] == owner) & (offset[:, None] >= offset)
        visible = torch.cat([torch.ones(len(ids), past, dtype=torch.bool), own], -1)
        mask = torch.zeros(visible.shape, dtype=decoder.dtype).masked_fill_(~visible, float("-inf"))
        # 3. the log-likelihoods of the tokens that follow  [time]
        self.cache.begin_pass(len(ids))
        positions = (past + offset).to(decoder.device)[None]
        key_positions = torch.cat([torch.arange(past, device=decoder.device)[None], positions], -1)
        masks = decoder.mask_windows(mask.to(decoder.device)[None, None, None], positions, key_positions)
        states = self._run(torch.tensor([ids]), positions, masks, past)
        follows = torch.tensor([token for one in completions for token in one[1:]], device=decoder.device)
        logs = torch.log_softmax(decoder.logits(states[0]).float(), -1).gather(-1, follows[:, None])[:, 0].tolist()
        for place, value in zip(owner.tolist(), logs, strict=True):
            scores[place] += value
        return scores

    def _run(self, ids: Tensor, positions: Tensor, masks: Masks, first: int) -> Tensor:
        """The last layer's states [texts, time, width] for tokens `ids` [texts, time] at positions from `first` on."""
        decoder = self._decoder
        users, prompts = [text.user for text in self.texts], [text.prompt for text in self.texts]
        loras = prompt_loras(users, prompts, first, first + ids.shape[1])
        x, rope = decoder.embed(ids.to(decoder.device)), decoder.rope(positions)
        return decoder.run_layers(x, rope, masks, loras=loras, past=self.cache, read_copies=True)


class DecodingBatch:
    """Rows that decode together. Rows are numbered without gaps; see `keep_rows`."""

    def __init__(self, decoder: LlamaDecoder, rows: int = INITIAL_ROWS, capacity: int = INITIAL_POSITIONS) -> None:
        self._decoder, self._least = decoder, (rows, capacity)
        self._cache = KVCache(decoder, rows, capacity)
        # A CPU multiplies a few rows by narrow 16-bit factors up to four times slower than by float32.
        dtype = torch.float32 if decoder.device.type == "cpu" else None
        self._shared, self._own = RowFactors(dtype=dtype), RowFactors(dtype=dtype)

    def __len__(self) -> int:
        return len(self._cache.lengths)

    @property
    def num_bytes(self) -> int:
        """The memory of the rows' keys and values."""
        return self._cache.num_bytes

    @torch.inference_mode()
    def join(self, read: PromptPass) -> None:
        """Append the texts of `read` as new rows. If this fails, the batch is unchanged."""
        own = [text.user.decoding_factors for text in read.texts]
        self._cache.add_rows(read.cache)
        self._own.add_rows(own)
        self._shared.add_rows([text.user.shared for text in read.texts])

    @torch.inference_mode()
    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Run one more token of each row; returns the next-token logits [rows, vocabulary]."""
        decoder, cache = self._decoder, self._cache
        positions, masks = cache.begin_pass(1)
        x = decoder.embed(torch.tensor(tokens, device=decoder.device)[:, None])
        loras = [one for one in (self._shared.batched_lora(), self._own.batched_lora()) if one is not None]
        x = decoder.run_layers(x, decoder.rope(positions), masks, loras=loras, past=cache, read_copies=True)
        cache.advance(1)
        return decoder.logits(x[:, -1], read_copies=True)

    def pack_weights(self) -> None:
        """Copy the weights into the layout that is fastest for this number of rows."""
        self._decoder.pack_weights(one_row=len(self) == 1, many_rows=len(self) > 1)

    def row_block(self, row: int, length: int) -> Tensor:
        """See `KVCache.row_block`."""
        return self._cache.row_block(row, length)

    def row_length(self, row: int) -> int:
        """The number of a row's tokens whose keys and values are in the batch."""
        return self._cache.lengths[row]

    @torch.inference_mode()
    def keep_rows(self, kept: Sequence[int]) -> list[int]:
        """Drop all other rows. Returns the old index of each remaining row."""
        order = compact_rows(kept)
        self._cache.keep_rows(order)
        self._shared.keep_rows(order)
        self._own.keep_rows(order)
        return order

    def trim(self) -> None:
        """Free memory that no row uses."""
        self._cache.trim(*self._least)


def compact_rows(kept: Sequence[int]) -> list[int]:
    """The `order` in which the rows `kept` remain: the row at index `i` afterwards is the one at `order[i]` before.

    Rows from the end move into the places of dropped rows, so few rows are copied, and `order[i] >= i`.
    """
    holes = sorted(set(range(len(kept))).difference(kept))
    order = list(range(len(kept)))
    for hole, row in zip(holes, (row for row in kept if row >= len(kept)), strict=True):
        order[hole] = row
    return order
