"""The decoding loop: answers of one or many users, token by token.

One user is a batch of one. Rows leave the batch as their answers end.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from mta_cli.engine.backends import backend_of
from mta_cli.engine.generation.decoding_batch import DecodingBatch
from mta_cli.engine.generation.module_batch import ModuleBatch
from mta_cli.engine.generation.repetition import FinishReason, RepetitionFilter
from mta_cli.engine.generation.request import GenerationRequest, PromptCache, SamplingParams, remaining_context
from mta_cli.engine.generation.sampler import TokenSampler, require_finite_logits
from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.token_budget import TokenBudget

MIN_TOKENS_TO_PACK = 8  # from so many tokens of answer on, packing the weights takes less time than it saves


@dataclass
class _Row:
    """A request in a batch: its place among all, the most tokens that may follow, its choices and its tokens."""

    place: int
    request: GenerationRequest
    most: int
    sampler: TokenSampler
    filter: RepetitionFilter

    def add(self, token: int, end_ids: Sequence[int]) -> tuple[list[int], FinishReason | None]:
        """The tokens that may be shown after the next `token`, and why the answer ends, if it does."""
        self.request.ids.append(token)
        if token in end_ids:
            return self.filter.flush(), "end"
        shown, repeats = self.filter.add(token)
        if repeats:
            return shown, "repetition"
        if len(self.filter.tokens) >= self.most:
            return shown + self.filter.flush(), "length"
        return shown, None


@torch.inference_mode()
def generate(
    base: LoadedBase,
    requests: Sequence[GenerationRequest],
    params: SamplingParams,
    *,
    goes_on: Callable[[int], bool] = lambda place: True,
    prompt_cache: PromptCache | None = None,
) -> Generator[tuple[int, int], None, None]:
    """The tokens of all answers one by one, as (number of the request, token), without the end of turn.

    The requests get their answers, and why each ended. An answer that repeats itself ends there, and says it once; it
    ends as well where `goes_on`, asked by its number after each of its tokens, is false. It does not depend on the
    other requests. `prompt_cache` is for a request alone.

    Raises BadInput where a prompt leaves no room, IntegrityFault where the logits are not finite, UsageError where the
    base cannot have late LoRAs.
    """
    rows = [
        _Row(
            place,
            request,
            min(params.max_tokens, remaining_context(base, request.prompt)),
            params.sampler(),
            RepetitionFilter(base.tokenizer, active=params.stop_at_repetition),
        )
        for place, request in enumerate(requests)
    ]
    rows = [row for row in rows if row.most > 0]
    asked = [row.request for row in rows]
    with closing(backend_of(base).read_prompts(asked, params.max_tokens, prompt_cache)) as batches:
        for numbers, batch, logits in batches:
            yield from _decode(base, batch, logits, [rows[n] for n in numbers], goes_on)


def generate_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    users: Sequence[tuple[LoraWeights, ...]],
    owners: Sequence[int],
    params: SamplingParams,
) -> list[list[int]]:
    """The token ids of the answer to each prompt; user `owners[i]`, LoRAs above the base, answers prompt `i`.

    As many are answered together as fit into memory. Raises what `generate` raises.
    """
    requests = [GenerationRequest(prompt, users[owner]) for prompt, owner in zip(prompts, owners, strict=True)]

    def answer(numbers: list[int]) -> None:
        for n in numbers:  # afresh, where more did not fit into memory
            requests[n] = GenerationRequest(requests[n].prompt, requests[n].loras)
        for _ in generate(base, [requests[n] for n in numbers], params):
            pass

    TokenBudget(base).run_batches(backend_of(base).pack_requests(requests, params.max_tokens), answer)
    return [request.answer for request in requests]


def _decode(
    base: LoadedBase,
    batch: DecodingBatch | ModuleBatch,
    logits: Tensor,
    rows: list[_Row],
    goes_on: Callable[[int], bool],
) -> Iterator[tuple[int, int]]:
    """Decode until every row has its answer, from the `logits` [rows, vocabulary] that follow the prompts."""
    packs = max(row.most for row in rows) >= MIN_TOKENS_TO_PACK
    while True:
        # 1. one token for each row, and what each may show
        tokens, alive = _choose_tokens(logits, rows), list[int]()
        for r, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            shown, finish = row.add(token, base.end_ids)
            for one in shown:
                row.request.answer.append(one)
                yield row.place, one
            if finish is not None:
                row.request.finish = finish
            elif goes_on(row.place):
                alive.append(r)
        # 2. rows whose answers go on
        if not alive:
            return
        if len(alive) < len(rows):
            order = batch.keep_rows(alive)
            rows, tokens = [rows[i] for i in order], [tokens[i] for i in order]
        # 3. faster copies of the weights, after the first tokens, which need not wait for them
        if packs:
            batch.pack_weights()
            packs = False
        # 4. logits behind the new tokens  [rows, vocabulary]
        logits = batch.decode_step(tokens)


def _choose_tokens(logits: Tensor, rows: Sequence[_Row]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if all(row.sampler.takes_likeliest for row in rows):
        require_finite_logits(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [row.sampler.choose(own).token for own, row in zip(logits, rows, strict=True)]
