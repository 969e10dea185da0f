"""A prompt and the answers that may follow it: how their tokens stand in one row. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from mta_cli.engine.text.prompts import TrainingRow

PROMPT_SEGMENT = -1  # whose a token is that belongs to no branch


@dataclass(frozen=True)
class PromptTree:
    """A prompt and the answers that may follow it, each by itself.

    Where `asked` is given, only these of its branches run; their numbers stay what they are. Where it is `closed`, one
    of its branches follows for certain: each token is weighed against those alone that branches have in its place.
    """

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    active_indices: tuple[int, ...] | None = None
    constrained: bool = False

    @classmethod
    def from_row(cls, row: TrainingRow) -> PromptTree:
        """A training row: one prompt, one answer."""
        start = max(row.answer_start, 1)
        return cls(row.input_ids[:start], (row.input_ids[start:],))

    @property
    def full_tree(self) -> PromptTree:
        """What runs below the head where all of its branches are asked."""
        return PromptTree(self.prompt, self.completions)

    @property
    def active_completions(self) -> list[tuple[int, tuple[int, ...]]]:
        """The branches that run, each with its number."""
        return [
            (b, self.completions[b])
            for b in (range(len(self.completions)) if self.active_indices is None else self.active_indices)
        ]

    @property
    def single_completion_trees(self) -> list[tuple[int, PromptTree]]:
        """A fork for each branch that runs, and the branch's number."""
        return [(b, PromptTree(self.prompt, (branch,))) for b, branch in self.active_completions]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that run: all but the last of each branch, which is only predicted."""
        return (*self.prompt, *(token for _, branch in self.active_completions for token in branch[:-1]))

    @property
    def length(self) -> int:
        """How many tokens run."""
        return len(self.prompt) + sum(len(branch) - 1 for _, branch in self.active_completions)

    @property
    def positions(self) -> list[int]:
        """The position of each token that runs; branches all begin where the prompt ends."""
        start = len(self.prompt)
        return [*range(start), *(start + i for _, branch in self.active_completions for i in range(len(branch) - 1))]

    @property
    def segment_ids(self) -> list[int]:
        """For each token that runs, its branch, or `PROMPT`."""
        inner = [b for b, branch in self.active_completions for _ in branch[:-1]]
        return [PROMPT_SEGMENT] * len(self.prompt) + inner

    @property
    def columns_in_full_tree(self) -> list[int]:
        """For each token that runs, its place among those of the whole fork."""
        run = {PROMPT_SEGMENT, *(b for b, _ in self.active_completions)}
        return [column for column, owner in enumerate(self.full_tree.segment_ids) if owner in run]

    def prediction_targets(self) -> Iterator[tuple[int, int, int]]:
        """(column that predicts, token, branch) of every answer token."""
        starts = accumulate((len(branch) - 1 for _, branch in self.active_completions), initial=len(self.prompt))
        for (b, branch), start in zip(self.active_completions, starts, strict=False):
            for i, token in enumerate(branch):
                yield (len(self.prompt) - 1 if i == 0 else start + i - 1), token, b

    @property
    def allowed_tokens(self) -> list[tuple[int, ...] | None]:
        """For each of `labels`, the tokens that may stand in its place; None: any."""
        if not self.constrained:
            return [None for _, branch in self.active_completions for _ in branch]
        return [own for b, _ in self.active_completions for own in _allowed_next_tokens(self.completions)[b]]


@lru_cache(64)
def _allowed_next_tokens(branches: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """By branch and place: the tokens of all branches that begin alike."""
    return tuple(
        tuple(
            tuple(dict.fromkeys(one[i] for one in branches if len(one) > i and one[:i] == branch[:i]))
            for i in range(len(branch))
        )
        for branch in branches
    )
