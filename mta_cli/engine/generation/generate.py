"""The decoding loop: generates the answers of one or many users, token by token.

A single request is a batch of one row. Each row leaves the batch when its answer ends.
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

MIN_TOKENS_TO_PACK = 8  # for answers of at least this many tokens, packing the weights saves more time than it takes


@dataclass
class _Row:
    """A request in a batch: its index among all requests (`place`), its maximum answer length (`most`), its sampler."""

    place: int
    request: GenerationRequest
    most: int
    sampler: TokenSampler
    filter: RepetitionFilter

    def add(self, token: int, end_ids: Sequence[int]) -> tuple[list[int], FinishReason | None]:
        """Add the next `token`. Returns the tokens that may be shown now, and the finish reason if the answer ends."""
        self.request.ids.append(token)
        if token in end_ids:
            return self.filter.flush(), "end"
        shown, repeats = self.filter.add(token)
        if repeats:
            return shown, "repetition"
        if len(self.filter.tokens) >= self.most:
            repeats = self.filter.end_at_limit()
            return shown + self.filter.flush(), "repetition" if repeats else "length"
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
    """Yields the tokens of all answers as (index of the request, token), without the end token.

    Fills in each request's answer and finish reason. An answer ends at an end token, at `params.max_tokens`, at the end
    of the base's window, at a repetition (the repeated block is kept once), or when `goes_on` returns false, which is
    called with the request's index after each token. An answer does not depend on the other requests. `prompt_cache`
    can be used for a single request only.

    Raises BadInput if a prompt leaves no room for an answer, IntegrityFault if logits are not finite, UsageError if a
    LoRA acts on late tokens only and the base has no Llama decoder.
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
    """The token ids of the answer to each prompt. Prompt `i` is answered with the LoRAs `users[owners[i]]`.

    Batches are as large as fit into memory. Raises the errors of `generate`, and BadInput if a single request does not
    fit.
    """
    requests = [GenerationRequest(prompt, users[owner]) for prompt, owner in zip(prompts, owners, strict=True)]

    def answer(numbers: list[int]) -> None:
        for n in numbers:  # drop what a larger batch generated before it ran out of memory
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
    """Decode until every answer has ended. `logits` [rows, vocabulary] are the next-token logits after the prompts."""
    packs = max(row.most for row in rows) >= MIN_TOKENS_TO_PACK
    while True:
        # 1. choose a token for each row, and yield the tokens that may be shown
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
        # 2. drop the rows whose answers have ended
        if not alive:
            return
        if len(alive) < len(rows):
            order = batch.keep_rows(alive)
            rows, tokens = [rows[i] for i in order], [tokens[i] for i in order]
        # 3. pack the weights, only now so that the first tokens do not wait for it
        if packs:
            batch.pack_weights()
            packs = False
        # 4. run the new tokens; logits of the next ones  [rows, vocabulary]
        logits = batch.decode_step(tokens)


def _choose_tokens(logits: Tensor, rows: Sequence[_Row]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if all(row.sampler.takes_likeliest for row in rows):
        require_finite_logits(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [row.sampler.choose(own).token for own, row in zip(logits, rows, strict=True)]
