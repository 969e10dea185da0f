"""Answers of one model: a forward loop with a key–value cache, and the likelihood of given answers.

Through the plain decoder where the base has one, else through its own modules. Knows neither users, prompts nor
adapters: whatever is folded into the weights is what answers, with one late part on top where it is given.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.kv_cache import KVCache
from mta_cli.engine.model.llama import BatchedLora, LlamaDecoder, WeightFormat, causal_mask
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.backends import group_frozen_loras, require_supported_placements
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.errors import BadInput, IntegrityFault, UsageError

PREFILL_CHUNK_TOKENS = 1024  # prompt tokens that run at once
MIN_TOKENS_TO_PACK = (
    8  # from so many tokens of answer on, a copy of the weights in another order is sooner made than missed
)
MAX_SCORED_LOGITS = 32_000_000  # most logits held at once while labels are scored: 128 MB in float32
REPLACEMENT = "\ufffd"  # what a tokenizer shows for bytes that do not make a character yet


class PromptCache:
    """The key–value cache of the last forward passes, kept between turns of a chat.

    Valid only while the weights stay as they are: call `clear` after every change of what is folded in.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: Any = None

    def clear(self) -> None:
        """Forget everything."""
        self.ids, self.cache = [], None

    def keep_prefix(self, prompt_ids: Sequence[int]) -> int:
        """Cut the cache to what it shares with `prompt_ids`, less one token that must run; returns the length kept."""
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
        """Forget all but the first `length` tokens."""
        surplus = len(self.ids) - length
        if length == 0:
            self.clear()
        elif surplus > 0:
            self.cache.crop(-surplus)
            del self.ids[length:]


class StreamingDetokenizer:
    """Turns token ids into text piece by piece, never splitting a character that spans several tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # ids before this one are in what was given out
        self._context = 0  # where decoding starts, so that word boundaries come out as in the whole text

    def add_token(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is still open."""
        self._ids.append(token_id)
        text = self._text(self._context, len(self._ids))
        return "" if text.endswith(REPLACEMENT) else self._take(text)

    def flush(self) -> str:
        """What was held back; bytes that never became a character come out as U+FFFD."""
        return self._take(self._text(self._context, len(self._ids)))

    def _take(self, text: str) -> str:
        piece = text[len(self._text(self._context, self._shown)) :]
        self._context, self._shown = self._shown, len(self._ids)
        return piece

    def _text(self, start: int, end: int) -> str:
        decoded = self._tokenizer.decode(
            self._ids[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)


def generate_tokens(
    base: LoadedBase,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    memory: PromptCache | None = None,
    late: LoraWeights | None = None,
    int8: bool = False,
) -> Iterator[int]:
    """The answer's token ids one by one, without the end of turn. Temperature 0 is greedy.

    `late` acts on the last tokens of the prompt and on the answer. `int8`: weights rounded to 8 bits choose all tokens
    but the first. Raises BadInput where the prompt leaves no room, IntegrityFault where the model gives no numbers,
    UsageFault where the base cannot have late parts or 8-bit weights.
    """
    room = remaining_context(base, prompt_ids)
    if int8:
        require_int8(base)
    memory = memory if memory is not None else PromptCache()
    random = torch.Generator().manual_seed(seed)
    acting = _late_loras(base, late)
    start = _restore_prefix(base, memory, prompt_ids, late)
    pending = list(prompt_ids[len(memory.ids) :])
    try:
        for step in range(min(max_tokens, room)):
            if step == 1 and base.llama_decoder is not None and (int8 or max_tokens >= MIN_TOKENS_TO_PACK):
                base.llama_decoder.pack_weights(int8)  # after the first token, which need not wait for it
            read: WeightFormat = "int8" if int8 and step > 0 else "packed"
            token = sample_token(_next_logits(base, memory, pending, acting, read), temperature, top_p, random)
            if token in base.end_ids:
                return
            pending = [token]
            yield token
    finally:
        if late is not None:  # the next prompt's early tokens must not meet what the part has touched
            memory.crop_to(start)


def label_scores(
    base: LoadedBase,
    prompt_ids: Sequence[int],
    label_ids: Sequence[Sequence[int]],
    *,
    late: LoraWeights | None = None,
) -> list[float]:
    """Log-likelihood of each label's tokens after the prompt, in nats. The prompt runs once; labels share batches."""
    if not label_ids or not all(label_ids):
        raise BadInput("There is no label to score, or one of them has no tokens.")
    longest = max(len(label) for label in label_ids)
    require_window(base, prompt_ids, longest)
    batch = max(1, MAX_SCORED_LOGITS // (len(base.tokenizer) * longest))
    if base.llama_decoder is None:
        require_supported_placements(base, [late.placement] if late is not None else [])
        return _module_scores(base, prompt_ids, label_ids, batch)
    branches = [tuple(label) for label in label_ids]
    forks = [PromptTree(tuple(prompt_ids), tuple(branches[i : i + batch])) for i in range(0, len(branches), batch)]
    parts = (late,) if late is not None else ()
    found = completion_log_likelihoods(base, forks, [parts], [(i, 0) for i in range(len(forks))])
    return [value for values in found for value in values]


def remaining_context(base: LoadedBase, prompt_ids: Sequence[int]) -> int:
    """How many tokens may follow the prompt. BadInput where there is no prompt or no room."""
    room = base.window - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise BadInput(
            f"The prompt has {len(prompt_ids)} tokens; {base.name} reads from 1 to {base.window - 1}.",
            hint="Shorten it, or show fewer history items.",
        )
    return room


def require_int8(base: LoadedBase) -> None:
    """UsageFault where 8-bit weights cannot be had."""
    if base.llama_decoder is None or not base.llama_decoder.supports_int8:
        raise UsageError(
            f"--int8 needs a base of the Llama family in bfloat16 on a CPU; {base.name} in {str(base.dtype)[6:]} on "
            f"{base.device} is none.",
            hint="Leave --int8 out, or add --dtype bfloat16.",
        )


def require_window(base: LoadedBase, prompt_ids: Sequence[int], answer: int) -> None:
    """BadInput where a prompt and an answer of `answer` tokens are more than the base reads."""
    if len(prompt_ids) + answer - 1 > base.window:
        raise BadInput(
            f"The prompt has {len(prompt_ids)} tokens and the answer {answer}; {base.name} reads {base.window}."
        )


def _restore_prefix(base: LoadedBase, memory: PromptCache, prompt_ids: Sequence[int], late: LoraWeights | None) -> int:
    """Bring `memory` to what it may hold before `late` acts; returns the position where that begins."""
    kept = memory.keep_prefix(prompt_ids)
    if late is None:
        return len(prompt_ids)
    start = late.placement.first_position(len(prompt_ids))
    memory.crop_to(min(kept, start))
    if kept < start:
        _next_logits(base, memory, list(prompt_ids[kept:start]), ())
    return start


def _late_loras(base: LoadedBase, late: LoraWeights | None) -> tuple[BatchedLora, ...]:
    if late is None:
        return ()
    require_supported_placements(base, [late.placement])
    if base.llama_decoder is None:
        raise UsageError("a part that acts on all tokens is folded into the weights of this base, not laid on top")
    return tuple(BatchedLora(crowd.factors_for_rows([0])) for crowd in group_frozen_loras(base.llama_decoder, [[late]]))


@torch.inference_mode()
def _module_scores(
    base: LoadedBase, prompt_ids: Sequence[int], label_ids: Sequence[Sequence[int]], batch: int
) -> list[float]:
    """Through the base's own modules: the prompt once, then all labels behind copies of its cache."""
    memory = PromptCache()
    first = torch.log_softmax(_next_logits(base, memory, list(prompt_ids)).float(), dim=-1)  # [vocab]
    scores = [float(first[label[0]]) for label in label_ids]
    longer = [place for place, label in enumerate(label_ids) if len(label) > 1]
    for start in range(0, len(longer), batch):
        places = longer[start : start + batch]
        for place, tail in zip(places, _label_tail_scores(base, memory, [label_ids[i] for i in places]), strict=True):
            scores[place] += tail
    return scores


def _label_tail_scores(base: LoadedBase, memory: PromptCache, labels: Sequence[Sequence[int]]) -> list[float]:
    """Log-likelihood of every label from its second token on; the prompt is in `memory`, which stays as it is."""
    width = max(len(label) for label in labels) - 1
    # Padding stands on the right, so no real position ever sees it: neither a mask nor a pad token is needed.
    rows = torch.tensor([list(label) + [0] * (width + 1 - len(label)) for label in labels], device=base.device)
    cache = copy.deepcopy(memory.cache)
    cache.batch_repeat_interleave(len(labels))
    logits, _ = _forward(base, rows[:, :-1], cache)
    chosen = rows[:, 1:]  # [labels, width]
    logprobs = torch.log_softmax(logits.float(), dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    lengths = torch.tensor([len(label) - 1 for label in labels], device=base.device)
    real = torch.arange(width, device=base.device) < lengths.unsqueeze(-1)
    return [float(total) for total in logprobs.masked_fill(~real, 0.0).sum(-1)]


@torch.inference_mode()
def _next_logits(
    base: LoadedBase,
    memory: PromptCache,
    ids: list[int],
    parts: Sequence[BatchedLora] = (),
    read: WeightFormat = "packed",
) -> Tensor:
    """Run `ids` after what `memory` holds; the logits that follow the last of them, [vocab] on the base's device."""
    cache, known = memory.cache, memory.ids
    memory.clear()  # an interruption in the middle of a pass leaves layers of different lengths behind
    if base.llama_decoder is not None:
        cache = cache or KVCache(base.llama_decoder)
        last = _llama_next_logits(base.llama_decoder, cache, ids, parts, read)
    else:
        logits, cache = _forward(base, torch.tensor([ids], device=base.device), cache, logits_to_keep=1)
        last = logits[0, -1]
    memory.ids, memory.cache = known + ids, cache
    return last


def _llama_next_logits(
    plain: LlamaDecoder, slots: KVCache, ids: Sequence[int], parts: Sequence[BatchedLora], read: WeightFormat
) -> Tensor:
    slots.reserve(len(ids))
    for first in range(0, len(ids), PREFILL_CHUNK_TOKENS):
        x = plain.embed(torch.tensor([ids[first : first + PREFILL_CHUNK_TOKENS]], device=plain.device))
        past, new = slots.length, x.shape[1]
        rope = plain.rope(torch.arange(past, past + new, device=plain.device)[None])
        x = plain.run_layers(x, rope, _causal_mask_with_past(plain, past, new), parts=parts, past=slots, read=read)
        slots.advance(new)
    return plain.logits(x[:, -1], read=read)[0]


def _causal_mask_with_past(plain: LlamaDecoder, past: int, new: int) -> Tensor | None:
    """What `new` tokens see of themselves and of `past` ones; None where that is everything."""
    if new == 1:
        return None
    own = causal_mask(new, plain.dtype, plain.device)
    return torch.nn.functional.pad(own, (past, 0))


def _forward(base: LoadedBase, rows: Tensor, cache: Any, **wishes: int) -> tuple[Tensor, Any]:
    """Logits and the grown cache. `wishes` are passed on where the model's forward knows them.

    transformers calls the cache `cache` from 5.24 on and `past_key_values` before.
    """
    known = inspect.signature(base.model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    arguments = {key: value for key, value in wishes.items() if key in known}
    output = base.model(input_ids=rows, use_cache=True, **{name: cache}, **arguments)
    return output.logits, output[name]


def require_finite_logits(logits: Tensor) -> None:
    """IntegrityFault where some row of logits [..., vocab] has no largest number."""
    if not bool(torch.isfinite(logits.amax(-1)).all()):  # the largest of numbers among which is NaN is NaN
        raise IntegrityFault(
            "The model gave no usable numbers (NaN or infinite logits).",
            hint="Try --dtype float32; an adapter may be damaged: mta doctor",
        )


def sample_token(logits: Tensor, temperature: float, top_p: float, random: torch.Generator) -> int:
    """One token id from `logits` [vocab]. Draws on the CPU, so that a seed means the same on every device."""
    require_finite_logits(logits)
    if temperature <= 0:
        return int(logits.argmax())
    chances = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    if top_p < 1:
        ordered, places = chances.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of everything likelier
        ordered[before >= top_p] = 0
        chances = torch.zeros_like(chances).scatter_(0, places, ordered)
    return int(torch.multinomial(chances, 1, generator=random))


def _croppable(cache: Any) -> bool:
    """Whether every layer of the cache keeps all positions, so that cutting its end is exact."""
    if isinstance(cache, KVCache):
        return True
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
