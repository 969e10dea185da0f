"""Generation by one model, token by token with a key–value cache, and log-likelihoods of a task's labels.

The model is the base with whatever is merged into its weights. It runs through the Llama decoder where the base has
one, else through its own modules.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from mta_cli.engine.generation.repetition import FinishReason, RepetitionFilter
from mta_cli.engine.generation.sampler import TokenSampler
from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import BatchedLora, LlamaDecoder, Masks, causal_mask
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.backends import group_frozen_loras, require_supported_placements
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.errors import BadInput, UsageError

PREFILL_CHUNK_TOKENS = 1024  # prompt tokens that run at once
MIN_TOKENS_TO_PACK = 8  # from so many tokens of answer on, packing the weights takes less time than it saves
MAX_SCORED_LOGITS = 32_000_000  # most logits held at once while labels are scored: 128 MB in float32


class PromptCache:
    """The tokens and the key–value cache of the last forward passes, kept between turns of a chat.

    Valid only while the weights stay as they are: call `clear` after each change of what is merged into them.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: Any = None

    def clear(self) -> None:
        """Forget everything."""
        self.ids, self.cache = [], None

    def keep_prefix(self, prompt_ids: Sequence[int]) -> int:
        """Crop the cache to the prefix that it shares with `prompt_ids`, without the last token; returns its length."""
        shared = 0
        for ours, theirs in zip(self.ids, prompt_ids[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        if not shared or not _croppable(self.cache):
            self.clear()
            return 0
        self.crop_to(shared)
        return shared

    def crop_to(self, length: int) -> None:
        """Drop all but the first `length` tokens."""
        surplus = len(self.ids) - length
        if length == 0:
            self.clear()
        elif surplus > 0:
            self.cache.crop(-surplus)
            del self.ids[length:]


def generate_tokens(
    base: LoadedBase,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop_at_repetition: bool = True,
    prompt_cache: PromptCache | None = None,
    late: LoraWeights | None = None,
) -> Generator[int, None, FinishReason]:
    """The answer's token ids one by one, without the end of turn; returns why it ended. Temperature 0 is greedy.

    An answer that repeats itself ends there, and says it once. `late` is a LoRA that acts on the last tokens of the
    prompt and on the answer. Raises BadInput where the prompt leaves no room, IntegrityFault where the logits are
    not finite, UsageError where the base cannot have late LoRAs.
    """
    room = remaining_context(base, prompt_ids)
    prompt_cache = prompt_cache if prompt_cache is not None else PromptCache()
    sampler = TokenSampler(temperature, top_p, seed, min_p=min_p, repetition_penalty=repetition_penalty)
    answer = RepetitionFilter(base.tokenizer, active=stop_at_repetition)
    loras = _late_loras(base, late)
    # 1. keep what the cache shares with the prompt; the rest of the prompt has to run
    start = _restore_prefix(base, prompt_cache, prompt_ids, late)
    pending = list(prompt_ids[len(prompt_cache.ids) :])
    try:
        for step in range(min(max_tokens, room)):
            # 2. faster copies of the weights, after the first token, which need not wait for them
            if step == 1 and base.llama_decoder is not None and max_tokens >= MIN_TOKENS_TO_PACK:
                base.llama_decoder.pack_weights(many_rows=False)
            # 3. logits behind the pending tokens, and the next token
            token = sampler.choose(_next_logits(base, prompt_cache, pending, loras)).token
            if token in base.end_ids:
                yield from answer.flush()
                return "end"
            pending = [token]
            # 4. tokens that are no repetition
            shown, repeats = answer.add(token)
            yield from shown
            if repeats:
                return "repetition"
        yield from answer.flush()
        return "length"
    finally:
        if late is not None:  # drop what the late LoRA has touched: it must not act on early tokens of the next prompt
            prompt_cache.crop_to(start)


def label_scores(
    base: LoadedBase,
    prompt_ids: Sequence[int],
    label_ids: Sequence[Sequence[int]],
    *,
    late: LoraWeights | None = None,
) -> list[float]:
    """Log-likelihood of each label's tokens after the prompt, in nats. The prompt runs once a batch of labels."""
    if not label_ids or not all(label_ids):
        raise BadInput("There is no label to score, or one of them has no tokens.")
    longest = max(len(label) for label in label_ids)
    require_window(base, prompt_ids, longest)
    batch = max(1, MAX_SCORED_LOGITS // (len(base.tokenizer) * longest))
    if base.llama_decoder is None:
        require_supported_placements(base, [late.placement] if late is not None else [])
        return _module_scores(base, prompt_ids, label_ids, batch)
    completions = [tuple(label) for label in label_ids]
    trees = [
        PromptTree(tuple(prompt_ids), tuple(completions[i : i + batch])) for i in range(0, len(completions), batch)
    ]
    loras = (late,) if late is not None else ()
    scores = completion_log_likelihoods(base, trees, [loras], [(i, 0) for i in range(len(trees))])
    return [value for values in scores for value in values]


def remaining_context(base: LoadedBase, prompt_ids: Sequence[int]) -> int:
    """How many tokens may follow the prompt. Raises BadInput where there is no prompt or no room."""
    room = base.window - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise BadInput(
            f"The prompt has {len(prompt_ids)} tokens; {base.name} reads from 1 to {base.window - 1}.",
            hint="Shorten it, or show fewer history items.",
        )
    return room


def require_window(base: LoadedBase, prompt_ids: Sequence[int], answer: int) -> None:
    """Raises BadInput where a prompt and an answer of `answer` tokens are longer than the base's window."""
    if len(prompt_ids) + answer - 1 > base.window:
        raise BadInput(
            f"The prompt has {len(prompt_ids)} tokens and the answer {answer}; {base.name} reads {base.window}."
        )


def _restore_prefix(
    base: LoadedBase, prompt_cache: PromptCache, prompt_ids: Sequence[int], late: LoraWeights | None
) -> int:
    """Crop `prompt_cache`, or fill it up, to the position where `late` begins to act; returns that position."""
    kept = prompt_cache.keep_prefix(prompt_ids)
    if late is None:
        return len(prompt_ids)
    start = late.placement.first_position(len(prompt_ids))
    prompt_cache.crop_to(min(kept, start))
    if kept < start:
        _next_logits(base, prompt_cache, list(prompt_ids[kept:start]), ())
    return start


def _late_loras(base: LoadedBase, late: LoraWeights | None) -> tuple[BatchedLora, ...]:
    if late is None:
        return ()
    require_supported_placements(base, [late.placement])
    if base.llama_decoder is None:
        raise UsageError("a part that acts on all tokens is folded into the weights of this base, not laid on top")
    return tuple(BatchedLora(one.factors_for_rows([0])) for one in group_frozen_loras(base.llama_decoder, [[late]]))


@torch.inference_mode()
def _module_scores(
    base: LoadedBase, prompt_ids: Sequence[int], label_ids: Sequence[Sequence[int]], batch: int
) -> list[float]:
    """Through the base's own modules: the prompt once, then all labels behind copies of its cache.

    A cache that is not only keys and values, as Mamba's states, is not copied: each label runs behind the whole prompt.
    """
    prompt_cache = PromptCache()
    # 1. the first token of each label, from the prompt's last state
    first = torch.log_softmax(_next_logits(base, prompt_cache, list(prompt_ids)).float(), dim=-1)  # [vocab]
    scores = [float(first[label[0]]) for label in label_ids]
    # 2. the rest of longer labels, behind copies of the prompt's cache
    longer = [place for place, label in enumerate(label_ids) if len(label) > 1]
    if longer and not _has_keys_and_values(prompt_cache.cache, windows=True):
        tree = PromptTree(tuple(prompt_ids), tuple(map(tuple, label_ids)))
        return completion_log_likelihoods(base, [tree], [()], [(0, 0)])[0]
    for start in range(0, len(longer), batch):
        places = longer[start : start + batch]
        for place, tail in zip(
            places, _label_tail_scores(base, prompt_cache, [label_ids[i] for i in places]), strict=True
        ):
            scores[place] += tail
    return scores


def _label_tail_scores(base: LoadedBase, prompt_cache: PromptCache, labels: Sequence[Sequence[int]]) -> list[float]:
    """Log-likelihood of every label from its second token on; `prompt_cache` holds the prompt, and does not change."""
    width = max(len(label) for label in labels) - 1
    # 1. labels, padded on the right: no real position sees padding, so it needs neither a mask nor a pad token
    #    [labels, 1 + width]
    rows = torch.tensor([list(label) + [0] * (width + 1 - len(label)) for label in labels], device=base.device)
    # 2. one pass behind a copy of the cache for each label  [labels, width, vocabulary]
    cache = copy.deepcopy(prompt_cache.cache)
    cache.batch_repeat_interleave(len(labels))
    logits, _ = _forward(base, rows[:, :-1], cache)
    # 3. log-probabilities of the labels' own tokens, without the padding  [labels, width]
    chosen = rows[:, 1:]
    logprobs = torch.log_softmax(logits.float(), dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    lengths = torch.tensor([len(label) - 1 for label in labels], device=base.device)
    real = torch.arange(width, device=base.device) < lengths.unsqueeze(-1)
    return [float(total) for total in logprobs.masked_fill(~real, 0.0).sum(-1)]


@torch.inference_mode()
def _next_logits(
    base: LoadedBase, prompt_cache: PromptCache, ids: list[int], loras: Sequence[BatchedLora] = ()
) -> Tensor:
    """Run `ids` behind the tokens of `prompt_cache`; the logits [vocabulary] that follow the last of them."""
    cache, known = prompt_cache.cache, prompt_cache.ids
    prompt_cache.clear()  # a pass that is interrupted leaves layers of different lengths
    if base.llama_decoder is not None:
        cache = cache or KVCache(base.llama_decoder)
        last = _llama_next_logits(base.llama_decoder, cache, ids, loras)
    else:
        new = ids if cache is not None else known + ids
        logits, cache = _forward(base, torch.tensor([new], device=base.device), cache, logits_to_keep=1)
        last = logits[0, -1]
    prompt_cache.ids, prompt_cache.cache = known + ids, cache
    return last


def _llama_next_logits(
    decoder: LlamaDecoder, cache: KVCache, ids: Sequence[int], loras: Sequence[BatchedLora]
) -> Tensor:
    cache.reserve(len(ids))
    for first in range(0, len(ids), PREFILL_CHUNK_TOKENS):
        x = decoder.embed(torch.tensor([ids[first : first + PREFILL_CHUNK_TOKENS]], device=decoder.device))
        past, new = cache.length, x.shape[1]
        rope = decoder.rope(torch.arange(past, past + new, device=decoder.device)[None])
        mask = causal_mask_with_past(decoder, past, new)
        x = decoder.run_layers(x, rope, mask, loras=loras, past=cache, read_copies=True)
        cache.advance(new)
    return decoder.logits(x[:, -1], read_copies=True)[0]


def causal_mask_with_past(decoder: LlamaDecoder, past: int, new: int) -> Masks:
    """The mask [1, 1, 1, new, past + new] of `new` tokens behind `past` ones; None where nothing is hidden."""
    mask = None
    if new > 1:
        mask = torch.nn.functional.pad(causal_mask(new, decoder.dtype, decoder.device), (past, 0))
    if not decoder.windows:
        return mask
    positions = torch.arange(past + new, device=decoder.device)[None]
    return decoder.mask_windows(mask, positions[:, past:], positions)


def _forward(base: LoadedBase, rows: Tensor, cache: Any, **options: int) -> tuple[Tensor, Any]:
    """Logits and the grown cache, or None without one. `options` are passed on where the model's forward knows them.

    transformers calls the cache `cache` from 5.24 on and `past_key_values` before.
    """
    known = inspect.signature(base.model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    arguments = {key: value for key, value in options.items() if key in known}
    output = base.model(input_ids=rows, use_cache=True, **{name: cache}, **arguments)
    return output.logits, output.get(name)


def _croppable(cache: Any) -> bool:
    """Whether every layer of the cache keeps all positions, so that cutting its end is exact."""
    return isinstance(cache, KVCache) or _has_keys_and_values(cache)


def _has_keys_and_values(cache: Any, *, windows: bool = False) -> bool:
    """Whether a cache of transformers is of keys and values alone: of all positions, or with `windows` of the last."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    kinds = (DynamicLayer, DynamicSlidingWindowLayer) if windows else (DynamicLayer,)
    return type(cache) is DynamicCache and all(type(layer) in kinds for layer in cache.layers)
