"""Generation for many users at once: one batch, a row for each request, each row with its own user's LoRAs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mta_cli.engine.generation.batch_state import DecodingBatch, PromptRow
from mta_cli.engine.generation.generate import generate_tokens, remaining_context
from mta_cli.engine.generation.repetition import FinishReason, RepetitionFilter
from mta_cli.engine.generation.sampler import TokenSampler, require_finite_logits
from mta_cli.engine.lora.adapter import merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import PACKED_MAX_ROWS, LlamaDecoder
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
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_at_repetition: bool = True

    def sampler(self, seed: int) -> TokenSampler:
        """The choices of one answer."""
        penalty = self.repetition_penalty
        return TokenSampler(self.temperature, self.top_p, seed, min_p=self.min_p, repetition_penalty=penalty)


@dataclass
class GenerationRequest:
    """A prompt, its user's number, how many tokens may follow, and the answer as it grows. `seed` draws its tokens."""

    prompt: tuple[int, ...]
    owner: int
    max_new_tokens: int
    seed: int = 0
    answer: list[int] = field(default_factory=list)
    finish: FinishReason = "length"


@dataclass
class _GrowingRow:
    """A request in a batch: its choices, and its tokens, of which some may be held back."""

    request: GenerationRequest
    sampler: TokenSampler
    filter: RepetitionFilter


def generate_answers(
    base: LoadedBase,
    prompts: Sequence[Sequence[int]],
    users: Sequence[UserLoras],
    owners: Sequence[int],
    *,
    max_tokens: int,
    stop_at_repetition: bool = True,
) -> list[list[int]]:
    """The token ids of the greedy answer to each prompt, without the end of turn; user `owners[i]` answers prompt `i`.

    A user is the LoRAs above the base as it is. An answer does not depend on the other prompts, and ends where it
    repeats itself. Raises BadInput where a
    prompt leaves no room, IntegrityFault where the logits are not finite, UsageError where the base cannot have late
    LoRAs.
    """
    params = SamplingParams(max_tokens, stop_at_repetition=stop_at_repetition)
    requests = _requests(base, prompts, owners, max_tokens)
    waiting = [request for request in requests if request.max_new_tokens > 0]
    if base.llama_decoder is None:
        for _ in _generate_sequentially(base, waiting, users, params, _always):
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
    goes_on: Callable[[int], bool] = lambda place: True,
) -> Generator[tuple[int, int], None, list[FinishReason]]:
    """The tokens of all answers one by one, as (index of the prompt, token); returns why each ended.

    One batch holds all prompts. `seed` draws each answer's tokens as if it were alone. An answer ends as well where
    `goes_on`, asked by the index of its prompt after each of its tokens, is false. Raises what `generate_answers`
    raises.
    """
    requests = _requests(base, prompts, owners, params.max_tokens, seed)
    waiting = [request for request in requests if request.max_new_tokens > 0]
    places = {id(request): place for place, request in enumerate(requests)}

    def wanted(request: GenerationRequest) -> bool:
        return goes_on(places[id(request)])

    if base.llama_decoder is None:
        tokens_by_request = _generate_sequentially(base, waiting, users, params, wanted)
    else:
        tokens_by_request = _stream_batch(base, base.llama_decoder, waiting, users, params, wanted)
    yield from ((places[id(request)], token) for request, token in tokens_by_request)
    return [request.finish for request in requests]


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
        rows = [_growing_row(base, request, params) for request in batch]
        for _ in _decode_until_done(batch_state, batch_state.prefill(budget.tokens), rows, base.end_ids, _always):
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
    wanted: Callable[[GenerationRequest], bool],
) -> Iterator[tuple[GenerationRequest, int]]:
    if not requests:
        return
    batch_state = _start_batch(decoder, requests, users, _prefill_shared_prefix(decoder, requests, users))
    logits = batch_state.prefill(TokenBudget(base).tokens)
    decoder.pack_weights(one_row=False)
    rows = [_growing_row(base, request, params) for request in requests]
    yield from _decode_until_done(batch_state, logits, rows, base.end_ids, wanted)


def _always(request: GenerationRequest) -> bool:
    return True


def _growing_row(base: LoadedBase, request: GenerationRequest, params: SamplingParams) -> _GrowingRow:
    tokens = RepetitionFilter(base.tokenizer, active=params.stop_at_repetition)
    return _GrowingRow(request, params.sampler(request.seed), tokens)


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
    rows: list[_GrowingRow],
    end_ids: Sequence[int],
    wanted: Callable[[GenerationRequest], bool],
) -> Iterator[tuple[GenerationRequest, int]]:
    """Decode until every request has its answer, yielding each token; a row leaves the batch when its answer ends.

    An answer that is not `wanted` any more ends as well.
    """
    while True:
        # 1. one token for each row, and what each may show
        tokens, alive = _choose_tokens(logits, rows), list[int]()
        for r, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            shown, finish = _add_token(row, token, end_ids)
            for one in shown:
                row.request.answer.append(one)
                yield row.request, one
            # 2. rows whose answers go on
            if finish is not None:
                row.request.finish = finish
            elif wanted(row.request):
                alive.append(r)
        if not alive:
            return
        if len(alive) < len(rows):
            order = batch_state.keep_alive_rows(alive)
            rows, tokens = [rows[i] for i in order], [tokens[i] for i in order]
        # 3. logits behind the new tokens  [rows, vocabulary]
        logits = batch_state.decode_step(tokens)


def _add_token(row: _GrowingRow, token: int, end_ids: Sequence[int]) -> tuple[list[int], FinishReason | None]:
    """The tokens that a row may show after its next `token`, and why it ends, if it does."""
    if token in end_ids:
        return row.filter.flush(), "end"
    shown, repeats = row.filter.add(token)
    if repeats:
        return shown, "repetition"
    if len(row.filter.tokens) >= row.request.max_new_tokens:
        return shown + row.filter.flush(), "length"
    return shown, None


def _choose_tokens(logits: Tensor, rows: Sequence[_GrowingRow]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if all(row.sampler.takes_likeliest for row in rows):
        require_finite_logits(logits)
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return [row.sampler.choose(own).token for own, row in zip(logits, rows, strict=True)]


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
    base: LoadedBase,
    requests: Sequence[GenerationRequest],
    users: Sequence[UserLoras],
    params: SamplingParams,
    wanted: Callable[[GenerationRequest], bool],
) -> Iterator[tuple[GenerationRequest, int]]:
    """Through the base's own modules: each user's LoRAs merged in turn, one request after another."""
    require_supported_placements(base, [lora.placement for loras in users for lora in loras])
    for user in dict.fromkeys(request.owner for request in requests):
        with merge_into_base(base, merge_loras([(lora, 1.0) for lora in users[user]])):
            for request in requests:
                if request.owner == user:
                    yield from _generate_alone(base, request, params, wanted)


def _generate_alone(
    base: LoadedBase,
    request: GenerationRequest,
    params: SamplingParams,
    wanted: Callable[[GenerationRequest], bool],
) -> Iterator[tuple[GenerationRequest, int]]:
    tokens = generate_tokens(
        base,
        request.prompt,
        max_tokens=request.max_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        seed=request.seed,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        stop_at_repetition=params.stop_at_repetition,
    )
    while wanted(request):
        try:
            token = next(tokens)
        except StopIteration as end:
            request.finish = end.value
            return
        request.answer.append(token)
        yield request, token
