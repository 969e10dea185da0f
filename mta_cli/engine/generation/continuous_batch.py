"""A batch that rows join and leave between decoding steps: prompts in pieces, then token by token, then gone.

Each row has its own user's LoRAs and its own length. What a row gets does not depend on the other rows, but for
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mta_cli.engine.generation.batch_state import compact_rows
from mta_cli.engine.generation.generate import causal_mask_with_past
from mta_cli.engine.lora.row_factors import RowFactors, UserFactors
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import LlamaDecoder, Masks
from mta_cli.engine.model.row_cache import RowKVCache


class PromptPass:
    """A text that is read in pieces, behind a prefix that is known.

    The first `prompt` of `ids` are the prompt, from which late LoRAs count; what follows are tokens of an answer that
    was begun before. `prefix` is a `row_block` of the first positions, shorter than the text.
    """

    def __init__(
        self,
        decoder: LlamaDecoder,
        user: UserFactors,
        ids: Sequence[int],
        prompt: int | None = None,
        prefix: Tensor | None = None,
    ) -> None:
        self.user, self.ids, self.prompt = user, list(ids), len(ids) if prompt is None else prompt
        self._decoder, self.cache = decoder, KVCache(decoder, 1, max(1, len(self.ids)))
        if prefix is not None:
            self.cache.fill_row(prefix)

    @property
    def remaining(self) -> int:
        """How many tokens are still to be read."""
        return len(self.ids) - self.cache.length

    @torch.inference_mode()
    def read(self, most: int) -> Tensor | None:
        """Read up to `most` tokens; the logits [vocabulary] that follow the text once it is read, else None."""
        decoder, first = self._decoder, self.cache.length
        last = min(len(self.ids), first + most)
        x = self._run(
            self.ids[first:last], torch.arange(first, last), causal_mask_with_past(decoder, first, last - first)
        )
        self.cache.advance(last - first)
        return decoder.logits(x[:, -1], read_copies=True)[0] if last == len(self.ids) else None

    @torch.inference_mode()
    def completion_log_likelihoods(self, logits: Tensor, completions: Sequence[Sequence[int]]) -> list[float]:
        """Log-likelihood of each completion of the text that was read, nats; `logits` are those that follow the text.

        All completions run in one pass, each seeing the text and itself.
        """
        decoder, past = self._decoder, self.cache.length
        first = torch.log_softmax(logits.float(), -1)
        scores = [float(first[one[0]]) for one in completions]
        heads = [list(one[:-1]) for one in completions]  # the tokens behind which others are predicted
        ids = [token for head in heads for token in head]
        if not ids:
            return scores
        # 1. the completion and the position of each token  [time]
        owner = torch.tensor([n for n, head in enumerate(heads) for _ in head])
        offset = torch.tensor([place for head in heads for place in range(len(head))])
        # 2. a token sees the text, and its own completion up to itself  [1, 1, 1, time, past + time]
        own = (owner[:, None] == owner) & (offset[:, None] >= offset)
        visible = torch.cat([torch.ones(len(ids), past, dtype=torch.bool), own], -1)
        mask = torch.zeros(visible.shape, dtype=decoder.dtype).masked_fill_(~visible, float("-inf"))
        # 3. the log-likelihoods of the tokens that follow  [time]
        self.cache.reserve(len(ids))
        positions = past + offset
        key_positions = torch.cat([torch.arange(past), positions]).to(decoder.device)
        masks = decoder.mask_windows(
            mask.to(decoder.device)[None, None, None], positions.to(decoder.device)[None], key_positions[None]
        )
        x = self._run(ids, positions, masks)
        follows = torch.tensor([token for one in completions for token in one[1:]], device=decoder.device)
        logs = torch.log_softmax(decoder.logits(x[0]).float(), -1).gather(-1, follows[:, None])[:, 0].tolist()
        for place, value in zip(owner.tolist(), logs, strict=True):
            scores[place] += value
        return scores

    def _run(self, ids: Sequence[int], positions: Tensor, mask: Masks) -> Tensor:
        decoder = self._decoder
        x = decoder.embed(torch.tensor([list(ids)], device=decoder.device))
        rope = decoder.rope(positions.to(decoder.device)[None])
        loras = self.user.prompt_loras(int(positions[0]), int(positions[0]) + len(ids), self.prompt, decoder.dtype)
        return decoder.run_layers(x, rope, mask, loras=loras, past=self.cache, read_copies=True)


class ContinuousBatch:
    """Rows that decode together. Rows are numbered without gaps; see `leave`."""

    def __init__(self, decoder: LlamaDecoder) -> None:
        self._decoder = decoder
        self._cache, self._factors = RowKVCache(decoder), RowFactors()

    def __len__(self) -> int:
        return len(self._cache.lengths)

    @property
    def num_bytes(self) -> int:
        """The memory of the rows' keys and values."""
        return self._cache.num_bytes

    @torch.inference_mode()
    def join(self, text: PromptPass) -> int:
        """Add a text that was read as a row; returns its number, which is the last. An error changes nothing."""
        before = len(self)
        try:
            self._factors.add_row(text.user)
            return self._cache.add_row(text.cache)
        except BaseException:
            self._factors.keep_rows(range(before))
            raise

    @torch.inference_mode()
    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Run one more token of each row; the logits [rows, vocabulary] that follow."""
        decoder, cache = self._decoder, self._cache
        mask = decoder.mask_windows(cache.begin_step(), cache.positions, cache.key_positions)
        x = decoder.embed(torch.tensor(tokens, device=decoder.device)[:, None])
        loras = self._factors.batched_loras()
        x = decoder.run_layers(x, decoder.rope(cache.positions), mask, loras=loras, past=cache, read_copies=True)
        cache.advance()
        return decoder.logits(x[:, -1], read_copies=True)

    def trim(self) -> None:
        """Give back memory that no row uses."""
        self._cache.trim()

    def row_block(self, row: int, length: int) -> Tensor:
        """See `RowKVCache.row_block`."""
        return self._cache.row_block(row, length)

    @torch.inference_mode()
    def leave(self, rows: Sequence[int]) -> list[int]:
        """Drop these rows. Returns which of the old rows each row is now."""
        dropped = set(rows)
        order = compact_rows([row for row in range(len(self)) if row not in dropped])
        self._cache.keep_rows(order)
        self._factors.keep_rows(order)
        return order
