"""A prompt and its possible completions in one row of tokens, so that the prompt is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from mta_cli.engine.text.prompts import TrainingRow

PROMPT_SEGMENT = -1  # the segment of the prompt's tokens; a completion's segment is its number


@dataclass(frozen=True)
class PromptTree:
    """A prompt and alternative completions of it.

    Only the completions `active_indices` run (None: all); they keep their indices. If `constrained`, no other text can
    follow the prompt: a token's probability is normalised over the tokens with which the completions that begin in the
    same way continue, not over the vocabulary.
    """

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    active_indices: tuple[int, ...] | None = None
    constrained: bool = False

    @classmethod
    def from_row(cls, row: TrainingRow) -> PromptTree:
        """The tree of a training row, with the answer as its only completion."""
        start = max(row.answer_start, 1)
        return cls(row.input_ids[:start], (row.input_ids[start:],))

    @property
    def full_tree(self) -> PromptTree:
        """The tree with all completions active and unconstrained, from which cached prefixes are computed."""
        return PromptTree(self.prompt, self.completions)

    @property
    def active_completions(self) -> list[tuple[int, tuple[int, ...]]]:
        """The active completions, each with its number."""
        return [
            (i, self.completions[i])
            for i in (range(len(self.completions)) if self.active_indices is None else self.active_indices)
        ]

    @property
    def single_completion_trees(self) -> list[tuple[int, PromptTree]]:
        """A tree for each active completion, with the completion's number."""
        return [(i, PromptTree(self.prompt, (completion,))) for i, completion in self.active_completions]

    def zero_sums(self) -> list[float]:
        """Start values of the log-likelihood sums by completion: 0 for an active one, −∞ otherwise."""
        active = {number for number, _ in self.active_completions}
        return [0.0 if number in active else float("-inf") for number in range(len(self.completions))]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that run: the prompt's and all but the last of each completion, which is only predicted."""
        return (*self.prompt, *(token for _, completion in self.active_completions for token in completion[:-1]))

    @property
    def length(self) -> int:
        """The number of tokens that run."""
        return len(self.prompt) + sum(len(completion) - 1 for _, completion in self.active_completions)

    @property
    def positions(self) -> list[int]:
        """The position of each token that runs; all completions begin where the prompt ends."""
        start = len(self.prompt)
        inner = [start + i for _, completion in self.active_completions for i in range(len(completion) - 1)]
        return [*range(start), *inner]

    @property
    def segment_ids(self) -> list[int]:
        """The index of the completion that each running token belongs to, or `PROMPT_SEGMENT`."""
        inner = [i for i, completion in self.active_completions for _ in completion[:-1]]
        return [PROMPT_SEGMENT] * len(self.prompt) + inner

    @property
    def columns_in_full_tree(self) -> list[int]:
        """The column of each token that runs in the row of `full_tree`."""
        active = {PROMPT_SEGMENT, *(i for i, _ in self.active_completions)}
        return [column for column, segment in enumerate(self.full_tree.segment_ids) if segment in active]

    def prediction_targets(self) -> Iterator[tuple[int, int, int]]:
        """Yields (column of the state that predicts it, token, index of its completion) for every completion token."""
        lengths = (len(completion) - 1 for _, completion in self.active_completions)
        starts = accumulate(lengths, initial=len(self.prompt))  # the column of each completion's first token
        for (number, completion), start in zip(self.active_completions, starts, strict=False):
            for i, token in enumerate(completion):
                yield (len(self.prompt) - 1 if i == 0 else start + i - 1), token, number

    @property
    def allowed_tokens(self) -> list[tuple[int, ...] | None]:
        """For each of `prediction_targets`, the tokens over which it is normalised; None means the whole vocabulary."""
        if not self.constrained:
            return [None for _, completion in self.active_completions for _ in completion]
        return [allowed for i, _ in self.active_completions for allowed in _allowed_next_tokens(self.completions)[i]]


@lru_cache(64)
def _allowed_next_tokens(completions: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """By completion and position: the tokens at that position of all completions with the same beginning."""
    return tuple(
        tuple(
            tuple(dict.fromkeys(one[i] for one in completions if len(one) > i and one[:i] == completion[:i]))
            for i in range(len(completion))
        )
        for completion in completions
    )
