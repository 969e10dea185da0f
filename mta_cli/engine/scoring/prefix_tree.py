"""A prompt and the answers that may follow it: how their tokens stand in one row. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from mta_cli.engine.text.prompts import Row

PROMPT = -1  # whose a token is that belongs to no branch


@dataclass(frozen=True)
class Fork:
    """A prompt and the answers that may follow it, each by itself.

    Where `asked` is given, only these of its branches run; their numbers stay what they are. Where it is `closed`, one
    of its branches follows for certain: each token is weighed against those alone that branches have in its place.
    """

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    asked: tuple[int, ...] | None = None
    closed: bool = False

    @classmethod
    def of(cls, row: Row) -> Fork:
        """A training row: one prompt, one answer."""
        start = max(row.answer_start, 1)
        return cls(row.input_ids[:start], (row.input_ids[start:],))

    @property
    def whole(self) -> Fork:
        """What runs below the head where all of its branches are asked."""
        return Fork(self.prompt, self.branches)

    @property
    def running(self) -> list[tuple[int, tuple[int, ...]]]:
        """The branches that run, each with its number."""
        return [(b, self.branches[b]) for b in (range(len(self.branches)) if self.asked is None else self.asked)]

    @property
    def alone(self) -> list[tuple[int, Fork]]:
        """A fork for each branch that runs, and the branch's number."""
        return [(b, Fork(self.prompt, (branch,))) for b, branch in self.running]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that run: all but the last of each branch, which is only predicted."""
        return (*self.prompt, *(token for _, branch in self.running for token in branch[:-1]))

    @property
    def length(self) -> int:
        """How many tokens run."""
        return len(self.prompt) + sum(len(branch) - 1 for _, branch in self.running)

    @property
    def positions(self) -> list[int]:
        """The position of each token that runs; branches all begin where the prompt ends."""
        start = len(self.prompt)
        return [*range(start), *(start + i for _, branch in self.running for i in range(len(branch) - 1))]

    @property
    def owners(self) -> list[int]:
        """For each token that runs, its branch, or `PROMPT`."""
        inner = [b for b, branch in self.running for _ in branch[:-1]]
        return [PROMPT] * len(self.prompt) + inner

    @property
    def columns(self) -> list[int]:
        """For each token that runs, its place among those of the whole fork."""
        run = {PROMPT, *(b for b, _ in self.running)}
        return [column for column, owner in enumerate(self.whole.owners) if owner in run]

    def labels(self) -> Iterator[tuple[int, int, int]]:
        """(column that predicts, token, branch) of every answer token."""
        starts = accumulate((len(branch) - 1 for _, branch in self.running), initial=len(self.prompt))
        for (b, branch), start in zip(self.running, starts, strict=False):
            for i, token in enumerate(branch):
                yield (len(self.prompt) - 1 if i == 0 else start + i - 1), token, b

    @property
    def rivals(self) -> list[tuple[int, ...] | None]:
        """For each of `labels`, the tokens that may stand in its place; None: any."""
        if not self.closed:
            return [None for _, branch in self.running for _ in branch]
        return [own for b, _ in self.running for own in _rivals(self.branches)[b]]


@lru_cache(64)
def _rivals(branches: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """By branch and place: the tokens of all branches that begin alike."""
    return tuple(
        tuple(
            tuple(dict.fromkeys(one[i] for one in branches if len(one) > i and one[:i] == branch[:i]))
            for i in range(len(branch))
        )
        for branch in branches
    )
