"""Prefill with the Llama decoder: reads the prompts of several users as the rows of one batch."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from mta_cli.engine.generation.decoding_batch import DecodingBatch, PromptPass, PromptText
from mta_cli.engine.generation.request import GenerationRequest, PromptCache, common_prefix_length
from mta_cli.engine.lora.row_factors import UserFactors
from mta_cli.engine.model.llama import PACKED_MAX_ROWS, LlamaDecoder
from mta_cli.engine.scoring.prefix_cache_scoring import pack_by_length

CPU_BATCH_BYTES, GPU_BATCH_BYTES = 2 << 30, 8 << 30  # limits on the key–value cache and LoRA factors of a batch
PREFILL_CHUNK_TOKENS = 1024  # tokens of each prompt in one pass
MAX_EARLY_TOKENS = 1024  # the cache first gets room for at most this many tokens of each answer


def read_prompts(
    decoder: LlamaDecoder,
    requests: Sequence[GenerationRequest],
    max_tokens: int,
    batch_tokens: int,
    prompt_cache: PromptCache | None,
) -> Generator[tuple[Sequence[int], DecodingBatch, Tensor], None, None]:
    """Read all prompts, about `batch_tokens` tokens in a pass; see `LlamaBackend.read_prompts`."""
    if not requests:
        return
    # 1. each user's factors, once
    users = {id(one.loras): one.loras for one in requests}
    factors = {key: UserFactors.from_loras(decoder, loras, {}) for key, loras in users.items()}
    texts = [PromptText(factors[id(one.loras)], one.prompt, len(one.prompt)) for one in requests]
    # 2. the prefix that is cached, or that all prompts share
    prefix = _shared_prefix(decoder, texts) if prompt_cache is None else _cached_prefix(decoder, prompt_cache, texts[0])
    longest = max(len(one.prompt) for one in requests)
    new = longest - (0 if prefix is None else prefix.shape[3])
    # 3. the rest of the prompts, a few rows at once
    batch, logits = DecodingBatch(decoder, len(texts), longest + min(max_tokens, MAX_EARLY_TOKENS)), list[Tensor]()
    rows = max(1, batch_tokens // new)
    for first in range(0, len(texts), rows):
        reading = PromptPass(decoder, texts[first : first + rows], prefix)
        while (found := reading.read(PREFILL_CHUNK_TOKENS)) is None:
            pass
        logits.append(found)
        batch.join(reading)
    # 4. after the answers: keep the positions on which no LoRA for late tokens acted; the next turn reuses them
    try:
        yield range(len(requests)), batch, torch.cat(logits)
    finally:
        if prompt_cache is not None:
            clean = texts[0].user.reusable_length(texts[0].prompt, batch.row_length(0))
            prompt_cache.ids, prompt_cache.cache = requests[0].ids[:clean], batch.row_block(0, clean)


def _cached_prefix(decoder: LlamaDecoder, prompt_cache: PromptCache, text: PromptText) -> Tensor | None:
    """Keys and values of the cached prefix of a text, which ends where a late LoRA begins. Empties `prompt_cache`."""
    clean = text.user.reusable_length(text.prompt, text.prompt)
    length, block = min(clean, prompt_cache.shared_length(text.ids)), prompt_cache.cache
    prompt_cache.clear()
    prefix = block[..., :length, :] if length else None
    return _read_prefix(decoder, text, clean, prefix) if length < clean < text.prompt else prefix


def _shared_prefix(decoder: LlamaDecoder, texts: Sequence[PromptText]) -> Tensor | None:
    """The keys and values of the prefix that all prompts share; None if users' LoRAs make them different.

    They are the same if no user's LoRA acts on the prefix, or if all texts belong to one user.
    """
    first, users = texts[0], {id(text.user): text.user for text in texts}
    if len(texts) == 1 or (len(users) > 1 and any(user.everywhere for user in users.values())):
        return None
    length = common_prefix_length([text.ids[:-1] for text in texts])
    length = min(text.user.reusable_length(text.prompt, length) for text in texts)
    return _read_prefix(decoder, first, length, None) if length else None


def _read_prefix(decoder: LlamaDecoder, text: PromptText, length: int, prefix: Tensor | None) -> Tensor:
    reading = PromptPass(decoder, [PromptText(text.user, text.ids[:length], text.prompt)], prefix)
    while reading.read(PREFILL_CHUNK_TOKENS) is None:
        pass
    return reading.cache.row_block(0, length)


def pack_requests(decoder: LlamaDecoder, requests: Sequence[GenerationRequest], max_tokens: int) -> list[list[int]]:
    """The indices of the requests, in groups of similar size that fit into memory.

    A group has at most `PACKED_MAX_ROWS` requests, for which packed weights are fast.
    """
    limit = GPU_BATCH_BYTES if decoder.device.type == "cuda" else CPU_BATCH_BYTES
    packs = pack_by_length([_request_bytes(decoder, request, max_tokens) for request in requests], limit)
    return [pack[n : n + PACKED_MAX_ROWS] for pack in packs for n in range(0, len(pack), PACKED_MAX_ROWS)]


def _request_bytes(decoder: LlamaDecoder, request: GenerationRequest, max_tokens: int) -> int:
    """The memory of a request: its cache, and its user's factors in float32, cast, and fused (padded with zeros)."""
    cache = 2 * len(decoder.layers) * decoder.kv_heads * decoder.head_dim * (len(request.prompt) + max_tokens)
    factors = sum(lora.num_parameters for lora in request.loras)
    return int(decoder.dtype.itemsize * cache + (4 + 3 * decoder.dtype.itemsize) * factors)
