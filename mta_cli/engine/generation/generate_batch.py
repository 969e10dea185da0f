"""Generation for many users at once: one batch, a row for each request, each row with its own user's LoRAs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.backends import TokenBudget, group_frozen_loras, require_supported_placements
from mta_cli.engine.scoring.log_likelihood import UserLoras
from mta_cli.engine.scoring.prefix_cache_scoring import pack_by_length

CPU_BATCH_BYTES, GPU_BATCH_BYTES = 2 << 30, 8 << 30  # of caches and factors held at once


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, the same for all requests. Temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass
class GenerationRequest:
    """A prompt, its user's number, how many tokens may follow, and the answer as it grows. `seed` draws its tokens."""

    prompt: tuple[int, ...]
    owner: int
    max_new_tokens: int
    seed: int = 0
    answer: list[int] = field(default_factory=list)


def generate_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    users: Sequence[UserLoras],
    owners: Sequence[int],
    *,
    max_tokens: int,
) -> list[list[int]]:
    """The token ids of the greedy answer to each prompt, without the end of turn; user `owners[i]` answers prompt `i`.

    A user is the LoRAs above the base as it is. An answer does not depend on the other prompts. Raises BadInput where a
    prompt leaves no room, IntegrityFault where the logits are not finite, UsageError where the base cannot have late
    LoRAs.
    """
    params = SamplingParams(max_tokens)
    requests = _requests(base, prompts, owners, max_tokens)
    waiting = [request for request in requests if request.max_new_tokens > 0]
    if base.llama_decoder is None:
        for _ in _generate_sequentially(base, waiting, users, params):
            pass
    elif waiting:
        _generate_batched(base, base.llama_decoder, waiting, users, params)
    return [request.answer for request in requests]


def stream_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    users: Sequence[UserLoras],
    owners: Sequence[int],
    params: SamplingParams,
    *,
    seed: int = 0,
    int8: bool = False,
) -> Iterator[tuple[int, int]]:
    """The tokens of all answers one by one, as (index of the prompt, token). One batch holds all prompts.

    `seed` draws each answer's tokens as if it were alone. With `int8`, weights rounded to 8 bits choose all tokens but
    the first ones. Raises what `generate_answers` raises.
    """
    if int8:
        require_int8(base)
    requests = _requests(base, prompts, owners, params.max_tokens, seed)
    waiting = [request for request in requests if request.max_new_tokens > 0]
    if base.llama_decoder is None:
        tokens_by_request = _generate_sequentially(base, waiting, users, params)
    else:
        tokens_by_request = _stream_batch(base, base.llama_decoder, waiting, users, params, int8)
    places = {id(request): place for place, request in enumerate(requests)}
    yield from ((places[id(request)], token) for request, token in tokens_by_request)


def _requests(
    base: LoadedBase, prompts: Sequence[Sequence[int]], owners: Sequence[int], most: int, seed: int = 0
) -> list[GenerationRequest]:
    return [
        GenerationRequest(tuple(prompt), owner, min(most, remaining_context(base, prompt)), seed)
        for prompt, owner in zip(prompts, owners, strict=True)
    ]


@torch.inference_mode()
def _generate_batched(
    base: LoadedBase,
    decoder: LlamaDecoder,
    requests: Sequence[GenerationRequest],
    users: Sequence[UserLoras],
    params: SamplingParams,
) -> None:
    # 1. the prefix that all prompts share, once
    decoder.pack_weights(one_row=False)
    prefix, budget = _prefill_shared_prefix(decoder, requests, users), TokenBudget(base)

    def work(batch: list[GenerationRequest]) -> None:
        for request in batch:
            request.answer.clear()  # the batch may run again in halves, where it did not fit into memory
        batch_state = _start_batch(decoder, batch, users, prefix)
        for _ in _decode_until_done(batch_state, batch_state.prefill(budget.tokens), list(batch), params, base.end_ids):
            pass

    # 2. batches of similar length that fit into memory, of so many rows that packed weights are read
    limit = GPU_BATCH_BYTES if base.device.type == "cuda" else CPU_BATCH_BYTES
    packs = pack_by_length([_request_bytes(decoder, request, users) for request in requests], limit)
    batches = [pack[n : n + PACKED_MAX_ROWS] for pack in packs for n in range(0, len(pack), PACKED_MAX_ROWS)]
    # 3. prefill and decode each
    budget.run_batches([[requests[i] for i in batch] for batch in batches], work)


@torch.inference_mode()
def _stream_batch(
    base: LoadedBase,
    decoder: LlamaDecoder,
    requests: list[GenerationRequest],
    users: Sequence[UserLoras],
    params: SamplingParams,
    int8: bool,
) -> Iterator[tuple[GenerationRequest, int]]:
    if not requests:
        return
    batch_state = _start_batch(decoder, requests, users, _prefill_shared_prefix(decoder, requests, users))
    logits = batch_state.prefill(TokenBudget(base).tokens)
    decoder.pack_weights(int8, one_row=False)
    yield from _decode_until_done(batch_state, logits, requests, params, base.end_ids, "int8" if int8 else "packed")


def _start_batch(
    decoder: LlamaDecoder,
    batch: Sequence[GenerationRequest],
    users: Sequence[UserLoras],
    prefix: KVCache | None,
) -> DecodingBatch:
    owners = list(dict.fromkeys(request.owner for request in batch))
    rows = [PromptRow(request.prompt, owners.index(request.owner)) for request in batch]
    cache = KVCache(decoder, len(batch), max(len(r.prompt) for r in batch) + max(r.max_new_tokens for r in batch))
    if prefix is not None:
        cache.copy_prefix(prefix)
    return DecodingBatch(decoder, group_frozen_loras(decoder, [users[owner] for owner in owners]), rows, cache)


def _decode_until_done(
    batch_state: DecodingBatch,
    logits: Tensor,
    requests: list[GenerationRequest],
    params: SamplingParams,
    end_ids: Sequence[int],
    read: WeightFormat = "packed",
) -> Iterator[tuple[GenerationRequest, int]]:
    """Decode until every request has its answer, yielding each token; a row leaves the batch when its answer ends."""
    randoms = [torch.Generator().manual_seed(request.seed) for request in requests]
    while True:
        # 1. one token for each row
        tokens = _sample_tokens(logits, params, randoms)
        for request, token in zip(requests, tokens, strict=True):
            if token not in end_ids:
                request.answer.append(token)
                yield request, token
        # 2. rows whose answers go on
        alive = [
            r
            for r, (request, token) in enumerate(zip(requests, tokens, strict=True))
            if token not in end_ids and len(request.answer) < request.max_new_tokens
        ]
        if not alive:
            return
        if len(alive) < len(requests):
            order = batch_state.keep_alive_rows(alive)
            requests, randoms = [requests[i] for i in order], [randoms[i] for i in order]
            tokens = [tokens[i] for i in order]
        # 3. logits behind the new tokens  [rows, vocabulary]
        logits = batch_state.decode_step(tokens, read)


def _sample_tokens(logits: Tensor, params: SamplingParams, randoms: Sequence[torch.Generator]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if params.temperature <= 0:
        require_finite_logits(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [
        sample_token(row, params.temperature, params.top_p, random) for row, random in zip(logits, randoms, strict=True)
    ]


def _prefill_shared_prefix(
    decoder: LlamaDecoder, requests: Sequence[GenerationRequest], users: Sequence[UserLoras]
) -> KVCache | None:
    """A cache of the prefix that all prompts share, where it is the same for all users; None where nothing is shared.

    It is the same where no user's LoRA acts on it, or where all requests are one user's.
    """
    owners = {request.owner for request in requests}
    loras = [lora for owner in owners for lora in users[owner]]
    everywhere = tuple(lora for lora in loras if lora.placement.late_tokens is None)
    if len(requests) == 1 or (everywhere and len(owners) > 1):
        return None
    lates = [lora.placement for lora in loras if lora.placement.late_tokens is not None]
    length = common_prefix_length([request.prompt[:-1] for request in requests])
    length = min([length, *(late.first_position(len(request.prompt)) for late in lates for request in requests)])
    if length == 0:
        return None
    cache, row = KVCache(decoder, 1, length), PromptRow(requests[0].prompt[:length], 0)
    DecodingBatch(decoder, group_frozen_loras(decoder, [everywhere]), [row], cache).prefill(length)
    return cache


def common_prefix_length(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` begin with."""
    length = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _request_bytes(decoder: LlamaDecoder, request: GenerationRequest, users: Sequence[UserLoras]) -> int:
    """Memory of a request: its cache, and its user's factors in float32, cast, and fused with zeros between."""
    cache = (
        2 * len(decoder.layers) * decoder.kv_heads * decoder.head_dim * (len(request.prompt) + request.max_new_tokens)
    )
    factors = sum(lora.num_parameters for lora in users[request.owner])
    total: int = decoder.dtype.itemsize * cache + (4 + 3 * decoder.dtype.itemsize) * factors
    return total


def _generate_sequentially(
    base: LoadedBase, requests: Sequence[GenerationRequest], users: Sequence[UserLoras], params: SamplingParams
) -> Iterator[tuple[GenerationRequest, int]]:
    """Through the base's own modules: each user's LoRAs merged in turn, one request after another."""
    require_supported_placements(base, [lora.placement for loras in users for lora in loras])
    for user in dict.fromkeys(request.owner for request in requests):
        with merge_into_base(base, merge_loras([(lora, 1.0) for lora in users[user]])):
            for request in requests:
                if request.owner != user:
                    continue
                for token in generate_tokens(
                    base,
                    request.prompt,
                    max_tokens=request.max_new_tokens,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    seed=request.seed,
                ):
                    request.answer.append(token)
                    yield request, token
