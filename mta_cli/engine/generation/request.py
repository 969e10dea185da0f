"""What is asked for: prompts with their users' LoRAs, how tokens are chosen, and what is kept between two turns."""

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
    """How tokens are chosen; see `TokenSampler`. `seed` draws each answer's tokens as if it were alone."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_at_repetition: bool = True

    def sampler(self) -> TokenSampler:
        """The choices of one answer."""
        penalty = self.repetition_penalty
        return TokenSampler(self.temperature, self.top_p, self.seed, min_p=self.min_p, repetition_penalty=penalty)


@dataclass(eq=False)
class GenerationRequest:
    """A prompt, its user's LoRAs above the base as it is, the answer as it grows, and why it ended.

    `ids` are the tokens that were run: the prompt's and all that were chosen, also those that are not shown. Requests
    of one user have the same object as `loras`.
    """

    prompt: Sequence[int]
    loras: tuple[LoraWeights, ...] = ()
    answer: list[int] = field(default_factory=list)
    finish: FinishReason = "length"

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)


class PromptCache:
    """The tokens that were run last, with what the base keeps of them, from one turn of a chat to the next.

    Valid only while the weights stay as they are: call `clear` after each change of what is merged into them.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.cache: Any = None

    def clear(self) -> None:
        """Forget everything."""
        self.ids, self.cache = [], None

    def shared_length(self, prompt: Sequence[int]) -> int:
        """How many tokens it shares with the beginning of `prompt`, without the prompt's last."""
        return common_prefix_length([self.ids, prompt[:-1]])


def common_prefix_length(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` begin with."""
    length = 0
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


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
