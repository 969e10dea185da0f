"""Answers for many people at once: one batch, a row for each request, every row with its own person's parts.

Knows neither users, the prompts' words nor files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mta_cli.engine.generation.batch_state import DecodingBatch, PromptRow
from mta_cli.engine.generation.generate import (
    generate_tokens,
    remaining_context,
    require_finite_logits,
    require_int8,
    sample_token,
)
from mta_cli.engine.lora.adapter import merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import PACKED_MAX_ROWS, LlamaDecoder, WeightFormat
from mta_cli.engine.scoring.backends import TokenBudget, group_frozen_loras, require_supported_placements
from mta_cli.engine.scoring.log_likelihood import UserLoras
from mta_cli.engine.scoring.prefix_cache_scoring import device_batch_tokens, pack_by_length
from mta_cli.engine.vectors import require_plain, stacked

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase

CPU_BATCH_BYTES, GPU_BATCH_BYTES = 2 << 30, 8 << 30  # of caches and factors held at once


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, the same for all requests. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass
class GenerationRequest:
    """A prompt, whose it is, how many tokens may follow, and the answer as it grows. `seed` draws its tokens."""

    prompt: tuple[int, ...]
    owner: int
    max_new_tokens: int
    seed: int = 0
    answer: list[int] = field(default_factory=list)


def generate_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    people: Sequence[UserLoras],
    owners: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    shifts: Sequence[Tensor | None] = (),
) -> list[list[int]]:
    """The answer's token ids to each prompt, without the end of turn; prompt `i` is asked of person `owners[i]`.

    A person is the parts that stand above the base as it is, and, where `shifts` are given, what is added to the last
    normalised state. An answer does not depend on what else is asked. Raises BadInput where a prompt leaves no room,
    IntegrityFault where the model gives no numbers, UsageFault where the base cannot have late parts or vectors.
    """
    choice = SamplingParams(max_tokens, temperature, top_p)
    requests = _requests(base, prompts, owners, max_tokens, seeds or [0] * len(prompts))
    waiting = [request for request in requests if request.max_new_tokens > 0]
    if base.llama_decoder is None:
        require_plain(base, shifts)
        for _ in _generate_sequentially(base, waiting, people, choice):
            pass
    elif waiting:
        _generate_batched(base, base.llama_decoder, waiting, people, choice, shifts)
    return [request.answer for request in requests]


def stream_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    people: Sequence[UserLoras],
    owners: Sequence[int],
    choice: SamplingParams,
    *,
    seed: int = 0,
    int8: bool = False,
) -> Iterator[tuple[int, int]]:
    """What `answer_many` gives, as it is made: (place in `prompts`, token). All are in one batch, which must fit.

    `int8`: weights rounded to 8 bits choose all tokens but the first ones. Raises what `answer_many` raises.
    """
    if int8:
        require_int8(base)
    requests = _requests(base, prompts, owners, choice.max_tokens, [seed] * len(prompts))
    waiting = [request for request in requests if request.max_new_tokens > 0]
    if base.llama_decoder is None:
        found = _generate_sequentially(base, waiting, people, choice)
    else:
        found = _stream_batch(base, base.llama_decoder, waiting, people, choice, int8)
    places = {id(request): place for place, request in enumerate(requests)}
    yield from ((places[id(request)], token) for request, token in found)


def _requests(
    base: LoadedBase, prompts: Sequence[Sequence[int]], owners: Sequence[int], most: int, seeds: Sequence[int]
) -> list[GenerationRequest]:
    return [
        GenerationRequest(tuple(prompt), owner, min(most, remaining_context(base, prompt)), seed)
        for prompt, owner, seed in zip(prompts, owners, seeds, strict=True)
    ]


@torch.inference_mode()
def _generate_batched(
    base: LoadedBase,
    plain: LlamaDecoder,
    requests: Sequence[GenerationRequest],
    people: Sequence[UserLoras],
    choice: SamplingParams,
    shifts: Sequence[Tensor | None],
) -> None:
    plain.pack_weights()
    prefix, budget = _prefill_shared_prefix(plain, requests, people), TokenBudget(base)

    def work(batch: list[GenerationRequest]) -> None:
        for request in batch:
            request.answer.clear()  # of a batch that did not fit into memory
        running = _begin(plain, batch, people, prefix, shifts)
        for _ in _decode_until_done(running, running.prefill(budget.tokens), list(batch), choice, base.end_ids):
            pass

    limit = GPU_BATCH_BYTES if base.device.type == "cuda" else CPU_BATCH_BYTES
    batches = pack_by_length([_bytes(plain, request, people) for request in requests], limit)
    budget.run_batches(
        [[requests[i] for i in b[n : n + PACKED_MAX_ROWS]] for b in batches for n in range(0, len(b), PACKED_MAX_ROWS)],
        work,
    )


@torch.inference_mode()
def _stream_batch(
    base: LoadedBase,
    plain: LlamaDecoder,
    requests: list[GenerationRequest],
    people: Sequence[UserLoras],
    choice: SamplingParams,
    int8: bool,
) -> Iterator[tuple[GenerationRequest, int]]:
    if not requests:
        return
    running = _begin(plain, requests, people, _prefill_shared_prefix(plain, requests, people))
    logits = running.prefill(device_batch_tokens(base.device))
    plain.pack_weights(int8)
    yield from _decode_until_done(running, logits, requests, choice, base.end_ids, "int8" if int8 else "packed")


def _begin(
    plain: LlamaDecoder,
    batch: Sequence[GenerationRequest],
    people: Sequence[UserLoras],
    prefix: KVCache | None,
    shifts: Sequence[Tensor | None] = (),
) -> DecodingBatch:
    owners = list(dict.fromkeys(request.owner for request in batch))
    rows = [PromptRow(request.prompt, owners.index(request.owner)) for request in batch]
    slots = KVCache(plain, len(batch), max(len(r.prompt) for r in batch) + max(r.max_new_tokens for r in batch))
    if prefix is not None:
        slots.copy_prefix(prefix)
    added = stacked(plain, [shifts[owner] for owner in owners] if shifts else ())
    return DecodingBatch(plain, group_frozen_loras(plain, [people[owner] for owner in owners]), rows, slots, added)


def _decode_until_done(
    running: DecodingBatch,
    logits: Tensor,
    requests: list[GenerationRequest],
    choice: SamplingParams,
    end_ids: Sequence[int],
    read: WeightFormat = "packed",
) -> Iterator[tuple[GenerationRequest, int]]:
    """Decode until every request has its answer, telling each token; a row leaves the batch when its own is whole."""
    randoms = [torch.Generator().manual_seed(request.seed) for request in requests]
    while True:
        tokens = _sample_tokens(logits, choice, randoms)
        for request, token in zip(requests, tokens, strict=True):
            if token not in end_ids:
                request.answer.append(token)
                yield request, token
        alive = [
            r
            for r, (request, token) in enumerate(zip(requests, tokens, strict=True))
            if token not in end_ids and len(request.answer) < request.max_new_tokens
        ]
        if not alive:
            return
        if len(alive) < len(requests):
            order = running.keep_alive_rows(alive)
            requests, randoms = [requests[i] for i in order], [randoms[i] for i in order]
            tokens = [tokens[i] for i in order]
        logits = running.decode_step(tokens, read)


def _sample_tokens(logits: Tensor, choice: SamplingParams, randoms: Sequence[torch.Generator]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if choice.temperature <= 0:
        require_finite_logits(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [
        sample_token(row, choice.temperature, choice.top_p, random) for row, random in zip(logits, randoms, strict=True)
    ]


def _prefill_shared_prefix(
    plain: LlamaDecoder, requests: Sequence[GenerationRequest], people: Sequence[UserLoras]
) -> KVCache | None:
    """What all prompts begin with, read once, where it is the same for everybody: no part of anybody acts there, or all
    requests are one person's. None where there is nothing to share.
    """
    owners = {request.owner for request in requests}
    parts = [part for owner in owners for part in people[owner]]
    everywhere = tuple(part for part in parts if part.placement.late_tokens is None)
    if len(requests) == 1 or (everywhere and len(owners) > 1):
        return None
    lates = [part.placement for part in parts if part.placement.late_tokens is not None]
    length = _common_prefix_length([request.prompt[:-1] for request in requests])
    length = min([length, *(late.first_position(len(request.prompt)) for late in lates for request in requests)])
    if length == 0:
        return None
    slots = KVCache(plain, 1, length)
    DecodingBatch(
        plain, group_frozen_loras(plain, [everywhere]), [PromptRow(requests[0].prompt[:length], 0)], slots
    ).prefill(length)
    return slots


def _common_prefix_length(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` begin with."""
    length = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _bytes(plain: LlamaDecoder, request: GenerationRequest, people: Sequence[UserLoras]) -> int:
    """What a request's cache and its person's factors take: float32, cast, and the row's own with zeros between."""
    cache = 2 * len(plain.layers) * plain.kv_heads * plain.head_dim * (len(request.prompt) + request.max_new_tokens)
    factors = sum(part.num_parameters for part in people[request.owner])
    total: int = plain.dtype.itemsize * cache + (4 + 3 * plain.dtype.itemsize) * factors
    return total


def _generate_sequentially(
    base: LoadedBase, requests: Sequence[GenerationRequest], people: Sequence[UserLoras], choice: SamplingParams
) -> Iterator[tuple[GenerationRequest, int]]:
    """Through the base's own modules: each person folded in turn, one request after another."""
    require_supported_placements(base, [part.placement for parts in people for part in parts])
    for person in dict.fromkeys(request.owner for request in requests):
        with merge_into_base(base, merge_loras([(part, 1.0) for part in people[person]])):
            for request in requests:
                if request.owner != person:
                    continue
                for token in generate_tokens(
                    base,
                    request.prompt,
                    max_tokens=request.max_new_tokens,
                    temperature=choice.temperature,
                    top_p=choice.top_p,
                    seed=request.seed,
                ):
                    request.answer.append(token)
                    yield request, token
