"""Requests for generation: prompts with their users' LoRAs, sampling parameters, and the cache between two turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mta_cli.engine.generation.repetition import FinishReason
from mta_cli.engine.generation.sampler import TokenSampler
from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.errors import BadInput


@dataclass(frozen=True)
class SamplingParams:
    """The longest answer in tokens, and the parameters of `TokenSampler`.

    Each answer is sampled with `seed`, independently of other answers.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_at_repetition: bool = True

    def sampler(self) -> TokenSampler:
        """A sampler for one answer."""
        penalty = self.repetition_penalty
        return TokenSampler(self.temperature, self.top_p, self.seed, min_p=self.min_p, repetition_penalty=penalty)


@dataclass(eq=False)
class GenerationRequest:
    """A prompt, its user's LoRAs above the current base, and the answer so far with its finish reason.

    `ids` are the prompt's tokens and all chosen ones, including tokens that are not shown. Requests of one user share
    the same `loras` object.
    """

    prompt: Sequence[int]
    loras: tuple[LoraWeights, ...] = ()
    answer: list[int] = field(default_factory=list)
    finish: FinishReason = "length"

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)


class PromptCache:
    """The tokens of the last turn of a chat and their keys and values, for reuse in the next turn.

    Valid only while the weights do not change: call `clear` after every merge.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: Any = None

    def clear(self) -> None:
        """Forget everything."""
        self.ids, self.cache = [], None

    def shared_length(self, prompt: Sequence[int]) -> int:
        """The length of the common prefix with `prompt`, without its last token, which must run to give logits."""
        return common_prefix_length([self.ids, prompt[:-1]])


def common_prefix_length(texts: Sequence[Sequence[int]]) -> int:
    """The length of the prefix that all `texts` share."""
    length = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def remaining_context(base: LoadedBase, prompt_ids: Sequence[int]) -> int:
    """The number of tokens that may follow the prompt. Raises BadInput if the prompt is empty or fills the window."""
    room = base.window - len(prompt_ids)
    if not prompt_ids or room < 1:
        raise BadInput(
            f"The prompt has {len(prompt_ids)} tokens; {base.name} reads from 1 to {base.window - 1}.",
            hint="Shorten the prompt, or show fewer history items.",
        )
    return room


def require_window(base: LoadedBase, prompt_ids: Sequence[int], answer: int) -> None:
    """Raises BadInput if the prompt and `answer` more tokens exceed the base's window."""
    if len(prompt_ids) + answer - 1 > base.window:
        raise BadInput(
            f"The prompt has {len(prompt_ids)} tokens and the answer {answer}; {base.name} reads only {base.window}.",
            hint="Shorten the prompt, or show fewer history items.",
        )
