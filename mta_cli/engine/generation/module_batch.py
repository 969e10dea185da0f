"""Prefill with a base's own modules: prompts one after another, each user's LoRAs merged into the weights in turn."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from mta_cli.engine.generation.request import GenerationRequest, PromptCache
from mta_cli.engine.lora.adapter import merge_into_base
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.model.load import LoadedBase


class ModuleBatch:
    """A batch of one row. Reads and extends the keys and values in `prompt_cache`."""

    def __init__(self, base: LoadedBase, prompt_cache: PromptCache) -> None:
        self._base, self._prompt_cache = base, prompt_cache

    def read_prompt(self, prompt: Sequence[int]) -> Tensor:
        """Run the part of the prompt that is not cached; returns the next-token logits [1, vocabulary]."""
        kept = self._prompt_cache
        length = kept.shared_length(prompt)
        if not length or not has_keys_and_values(kept.cache):
            kept.clear()
        elif surplus := len(kept.ids) - length:
            kept.cache.crop(-surplus)
            del kept.ids[length:]
        return self.decode_step(prompt[len(kept.ids) :])

    def decode_step(self, tokens: Sequence[int]) -> Tensor:
        """Run more tokens of the row; returns the next-token logits [1, vocabulary]."""
        kept = self._prompt_cache
        cache, known = kept.cache, kept.ids
        kept.clear()  # an interrupted pass leaves layers of different lengths
        new = tokens if cache is not None else [*known, *tokens]
        logits, cache = forward(self._base, torch.tensor([new], device=self._base.device), cache, logits_to_keep=1)
        kept.ids, kept.cache = [*known, *tokens], cache
        return logits[:, -1]

    def pack_weights(self) -> None:
        """Do nothing: the modules use their weights as they are."""

    def keep_rows(self, kept: Sequence[int]) -> list[int]:
        """Return `kept` unchanged: the batch has a single row, and ends when that row does."""
        return list(kept)


def read_prompts_in_turn(
    base: LoadedBase, requests: Sequence[GenerationRequest], prompt_cache: PromptCache | None
) -> Generator[tuple[Sequence[int], ModuleBatch, Tensor], None, None]:
    """One request after another, grouped by user; see `LlamaBackend.read_prompts`."""
    for loras in {id(request.loras): request.loras for request in requests}.values():
        with merge_into_base(base, merge_loras([(lora, 1.0) for lora in loras])):
            for number, request in enumerate(requests):
                if request.loras is loras:
                    batch = ModuleBatch(base, PromptCache() if prompt_cache is None else prompt_cache)
                    yield [number], batch, batch.read_prompt(request.prompt)


def forward(base: LoadedBase, rows: Tensor, cache: Any, **options: int) -> tuple[Tensor, Any]:
    """Run the tokens `rows` [rows, time] after `cache`. `options` are passed on if the model's forward accepts them.

    Returns the logits [rows, time, vocabulary] and the extended cache; None if the model returns no cache. transformers
    calls the cache `cache` from 5.24 on and `past_key_values` before.
    """
    known = inspect.signature(base.model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    arguments = {key: value for key, value in options.items() if key in known}
    output = base.model(input_ids=rows, use_cache=True, **{name: cache}, **arguments)
    return output.logits, output.get(name)


def has_keys_and_values(cache: Any, *, windows: bool = False) -> bool:
    """Whether every layer of a transformers cache holds just the keys and values of all positions.

    With `windows`, layers that keep only a sliding window are allowed too. The end of a cache can be cropped exactly
    only if it holds all positions.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer) if windows else (DynamicLayer,)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)
