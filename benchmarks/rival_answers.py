"""The common way to answer when every user has an adapter: transformers' `generate` with PEFT, in several variants.

Prompts are token ids. Answers are greedy and have exactly the requested number of tokens, ignoring end tokens, so that
every side does the same work. Does not use our own code.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rivals import load

Prompt = Sequence[int]


@dataclass(frozen=True)
class Answers:
    """Token ids of each prompt's answer, and the seconds for all of them, prompts included."""

    ids: tuple[tuple[int, ...], ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second, over all answers."""
        return sum(map(len, self.ids)) / self.seconds


@dataclass(frozen=True)
class Scores:
    """Log-likelihood (nats) of every label after each prompt, and the seconds for all of them."""

    values: tuple[tuple[float, ...], ...]
    seconds: float

    @property
    def chosen(self) -> tuple[int, ...]:
        """The index of each prompt's likeliest label, the first of ties."""
        return tuple(max(range(len(row)), key=row.__getitem__) for row in self.values)


def with_adapters(
    base: Path, adapters: Mapping[str, Path], dtype: str = "bfloat16", *, float32_factors: bool = False
) -> Any:
    """The base with every user's adapter folder loaded by PEFT under the user's name; the first one is active.

    By default, PEFT converts the factors to float32, and then has to convert every layer's input. The base's own dtype
    is faster, and is the default here.
    """
    from peft import PeftModel

    model: Any = load(base, dtype)
    for name, folder in adapters.items():
        if isinstance(model, PeftModel):
            model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=float32_factors)
        else:
            model = PeftModel.from_pretrained(model, folder, adapter_name=name, autocast_adapter_dtype=float32_factors)
    return _endless(model).eval()


def merged(base: Path, adapter: Path, dtype: str = "bfloat16") -> Any:
    """The base with one adapter merged into its weights by PEFT, which runs at the base's speed."""
    from peft import PeftModel

    return _endless(PeftModel.from_pretrained(load(base, dtype), adapter).merge_and_unload()).eval()


def _endless(model: Any) -> Any:
    """Ignore end tokens, and suppress the warning that the base's sampling settings are not used."""
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id = None, 0
    settings.temperature = settings.top_p = settings.top_k = None
    return model


def answer_one(model: Any, prompt: Prompt, new_tokens: int, *, cache: str | None = None) -> Answers:
    """Answer one prompt with the active adapter. `cache` is `generate`'s `cache_implementation`."""
    return answer_each(model, [prompt], new_tokens, cache=cache)


def answer_each(
    model: Any,
    prompts: Sequence[Prompt],
    new_tokens: int,
    *,
    users: Sequence[str] | None = None,
    cache: str | None = None,
) -> Answers:
    """Answer the prompts one after another. Before each, the adapter named in `users` is activated."""
    start = time.perf_counter()
    ids = []
    for place, prompt in enumerate(prompts):
        if users is not None and model.active_adapter != users[place]:
            model.set_adapter(users[place])
        ids += _generate(model, [prompt], new_tokens, cache_implementation=cache)
    return Answers(tuple(ids), time.perf_counter() - start)


def answer_mixed(model: Any, prompts: Sequence[Prompt], users: Sequence[str], new_tokens: int) -> Answers:
    """Answer all prompts in one batch, each row with the adapter of its user: PEFT's mixed-adapter batches."""
    start = time.perf_counter()
    ids = _generate(model, prompts, new_tokens, adapter_names=list(users))
    return Answers(tuple(ids), time.perf_counter() - start)


def _generate(model: Any, prompts: Sequence[Prompt], new_tokens: int, **more: Any) -> list[tuple[int, ...]]:
    """Greedy answers of a batch that is padded on the left."""
    import torch

    device, width = next(model.parameters()).device, max(map(len, prompts))
    rows = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    seen = torch.zeros_like(rows)
    for row, mask, prompt in zip(rows, seen, prompts, strict=True):
        row[width - len(prompt) :] = torch.tensor(prompt)
        mask[width - len(prompt) :] = 1
    more = {key: value for key, value in more.items() if value is not None}
    found = model.generate(input_ids=rows, attention_mask=seen, max_new_tokens=new_tokens, do_sample=False, **more)
    return [tuple(answer) for answer in found[:, width:].tolist()]


def score_each(
    model: Any, prompts: Sequence[Prompt], labels: Sequence[Prompt], *, users: Sequence[str] | None = None
) -> Scores:
    """The likelihood of every label after each prompt: one prompt at a time, all of its labels in one batch."""
    start = time.perf_counter()
    values = []
    for place, prompt in enumerate(prompts):
        if users is not None and model.active_adapter != users[place]:
            model.set_adapter(users[place])
        values.append(_score(model, prompt, labels))
    return Scores(tuple(values), time.perf_counter() - start)


def _score(model: Any, prompt: Prompt, labels: Sequence[Prompt]) -> tuple[float, ...]:
    """Rows of prompt and label, padded on the right; logits at the label's places only."""
    import torch

    longest = max(map(len, labels))
    padded = torch.tensor([[*label, *[0] * (longest - len(label))] for label in labels])  # [labels, longest]
    rows = torch.cat([torch.tensor(prompt).expand(len(labels), -1), padded], dim=1)
    with torch.inference_mode():
        logits = model(input_ids=rows, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1]
        chosen = torch.log_softmax(logits.float(), dim=-1).gather(-1, padded[..., None])[..., 0]
    real = torch.arange(longest) < torch.tensor([len(label) for label in labels])[:, None]
    return tuple(chosen.masked_fill(~real, 0.0).sum(-1).tolist())
