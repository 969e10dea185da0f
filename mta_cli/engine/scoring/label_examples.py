"""What a shot of a task of labels teaches: which label to choose, beside what is known before a model reads.

Of an answer's tokens alone, anchors and stacks learn above all how often a person gives each label; where habit and
neighbours are added to what the model says, that would be said twice. So it is the sum on which answers are decided
(see `labels.weighed`) whose likelihood counts, and what is left to learn is what neighbours and habit leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mta_cli.engine.memory.label_prior import Prior
from mta_cli.engine.scoring.prefix_cache_scoring import Scores
from mta_cli.engine.scoring.prefix_tree import Fork
from mta_cli.engine.text.prompts import Row

LEAST = 0.01  # probability of a label that is worth running, step by step and anchor by anchor
SPELT = 0.2  # nats between labels, of what other words take from them, up to which it may count as it is
OUT = float("-inf")


@dataclass(frozen=True)
class Choice:
    """A row that is learned as a choice: of `labels`, each as its tokens, number `right` is the answer.

    `known` of each label is added to `share` times its log-likelihood (nats). A label of −∞ is out of the question, and
    does not run. Where it is `closed`, log-likelihoods are those of a closed fork.
    """

    row: Row
    labels: tuple[tuple[int, ...], ...]
    right: int
    known: tuple[float, ...]
    share: float = 1.0
    closed: bool = False

    @classmethod
    def of(cls, row: Row, labels: Sequence[Sequence[int]], right: int, prior: Prior, text: str) -> Choice:
        """The row of an answer to `text`, of which `prior` is known; `labels` are tokens."""
        return cls(row, tuple(map(tuple, labels)), right, tuple(prior(text)), prior.share)

    def decided(self, branches: Sequence[float]) -> Tensor:
        """Log-probability of each label [labels], float64, by the log-likelihoods of its branches."""
        read, known = torch.tensor(branches, dtype=torch.float64), torch.tensor(self.known, dtype=torch.float64)
        return (self.share * read + known).log_softmax(0)

    def narrowed(self, branches: Sequence[float]) -> Choice:
        """The same without the labels whose probability is below `LEAST`, the answer aside."""
        chances = self.decided(branches).exp().tolist()
        kept = [label == self.right or chance >= LEAST for label, chance in enumerate(chances)]
        return replace(self, known=tuple(v if stays else OUT for v, stays in zip(self.known, kept, strict=True)))

    def enclosed(self, branches: Sequence[float], closed: Sequence[float]) -> Choice:
        """The same by a closed fork, whose branches have log-likelihoods `closed` where those of an open one have
        `branches`: what other words than labels take from a label counts as it is now.

        Itself where they take from labels too unequally for that to stay so, as where a model cannot spell them yet.
        """
        if self.closed:
            return self
        outside = [
            mine - inner if said > OUT else OUT for said, mine, inner in zip(self.known, branches, closed, strict=True)
        ]
        counted = [value for value in outside if value > OUT]
        if max(counted) - min(counted) > SPELT:
            return self
        known = tuple(said + self.share * value for said, value in zip(self.known, outside, strict=True))
        return replace(self, known=known, closed=True)


Taught = Row | Choice


def row_of(one: Taught) -> Row:
    """The prompt and the answer that was given."""
    return one.row if isinstance(one, Choice) else one


def fork_of(one: Taught) -> Fork:
    """What has to run to train on it."""
    fork = Fork.of(row_of(one))
    if not isinstance(one, Choice):
        return fork
    open_to = tuple(label for label, known in enumerate(one.known) if known > OUT)
    return Fork(fork.prompt, one.labels, None if len(open_to) == len(one.labels) else open_to, one.closed)


def weight_of(one: Taught) -> int:
    """How many losses it has: one of a choice, one of each token of an answer."""
    return 1 if isinstance(one, Choice) else len(fork_of(one).branches[0])


def log_likelihood(one: Taught, branches: Sequence[float]) -> float:
    """Of what it teaches, nats, by the log-likelihoods of its fork's branches."""
    if not isinstance(one, Choice):
        return branches[0]
    return float(one.decided(branches)[one.right])


def losses(scores: Scores, taught: Sequence[Taught]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [losses], nats, and the one that each belongs to; `scores` are of a pass of these."""
    chosen = [(place, one) for place, one in enumerate(taught) if isinstance(one, Choice)]
    if not chosen:
        return -scores.values, scores.row
    device, many = scores.values.device, max(len(one.labels) for _, one in chosen)
    place = torch.tensor([place for place, _ in chosen], device=device)
    known = torch.full((len(chosen), many), OUT, device=device)
    for n, (_, one) in enumerate(chosen):
        known[n, : len(one.known)] = torch.tensor(one.known, device=device)
    share = torch.tensor([one.share for _, one in chosen], device=device)
    right = torch.tensor([one.right for _, one in chosen], device=device)
    branch = torch.tensor(scores.branch, device=device)
    sums = scores.values.new_zeros(len(taught) * many).index_add(0, scores.row * many + branch, scores.values)
    decided = (share[:, None] * sums.view(-1, many)[place] + known).log_softmax(1)
    by_token = ~torch.isin(scores.row, place)
    found = torch.cat([-scores.values[by_token], -decided[torch.arange(len(chosen), device=device), right]])
    return found, torch.cat([scores.row[by_token], place])
