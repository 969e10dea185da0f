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

from mta_cli.engine.memory.label_prior import LabelPrior
from mta_cli.engine.scoring.prefix_cache_scoring import TokenLogLikelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.text.prompts import TrainingRow

MIN_LABEL_PROBABILITY = 0.01  # probability of a label that is worth running, step by step and anchor by anchor
MAX_RESTRICTION_SPREAD = (
    0.2  # nats between labels, of what other words take from them, up to which it may count as it is
)
EXCLUDED_LOG_PRIOR = float("-inf")


@dataclass(frozen=True)
class LabelExample:
    """A row that is learned as a choice: of `labels`, each as its tokens, number `right` is the answer.

    `known` of each label is added to `share` times its log-likelihood (nats). A label of −∞ is out of the question, and
    does not run. Where it is `closed`, log-likelihoods are those of a closed tree.
    """

    row: TrainingRow
    label_tokens: tuple[tuple[int, ...], ...]
    target_index: int
    log_prior: tuple[float, ...]
    model_weight: float = 1.0
    constrained: bool = False

    @classmethod
    def from_prior(
        cls,
        row: TrainingRow,
        label_tokens: Sequence[Sequence[int]],
        target_index: int,
        prior: LabelPrior,
        text: str,
        time: str | None = None,
    ) -> LabelExample:
        """The row of an answer to `text`, asked at `time`, beside what `prior` knows of it."""
        known = tuple(prior(text, time))
        return cls(row, tuple(map(tuple, label_tokens)), target_index, known, prior.model_weight)

    def label_log_probs(self, logliks: Sequence[float]) -> Tensor:
        """Log-probability of each label [labels], float64, by the log-likelihoods of its logliks."""
        read, known = torch.tensor(logliks, dtype=torch.float64), torch.tensor(self.log_prior, dtype=torch.float64)
        return (self.model_weight * read + known).log_softmax(0)

    def pruned(self, logliks: Sequence[float]) -> LabelExample:
        """The same without the labels whose probability is below `LEAST`, the answer aside."""
        chances = self.label_log_probs(logliks).exp().tolist()
        kept = [label == self.target_index or chance >= MIN_LABEL_PROBABILITY for label, chance in enumerate(chances)]
        return replace(
            self,
            log_prior=tuple(v if stays else EXCLUDED_LOG_PRIOR for v, stays in zip(self.log_prior, kept, strict=True)),
        )

    def restricted(self, logliks: Sequence[float], closed: Sequence[float]) -> LabelExample:
        """The same by a closed tree, whose logliks have log-likelihoods `closed` where those of an open one have
        `logliks`: what other words than labels take from a label counts as it is now.

        Itself where they take from labels too unequally for that to stay so, as where a model cannot spell them yet.
        """
        if self.constrained:
            return self
        outside = [
            mine - inner if said > EXCLUDED_LOG_PRIOR else EXCLUDED_LOG_PRIOR
            for said, mine, inner in zip(self.log_prior, logliks, closed, strict=True)
        ]
        counted = [value for value in outside if value > EXCLUDED_LOG_PRIOR]
        if max(counted) - min(counted) > MAX_RESTRICTION_SPREAD:
            return self
        known = tuple(said + self.model_weight * value for said, value in zip(self.log_prior, outside, strict=True))
        return replace(self, log_prior=known, constrained=True)


TrainingExample = TrainingRow | LabelExample


def prompt_answer_row(one: TrainingExample) -> TrainingRow:
    """The prompt and the answer that was given."""
    return one.row if isinstance(one, LabelExample) else one


def build_prompt_tree(one: TrainingExample) -> PromptTree:
    """What has to run to train on it."""
    tree = PromptTree.from_row(prompt_answer_row(one))
    if not isinstance(one, LabelExample):
        return tree
    open_to = tuple(label for label, known in enumerate(one.log_prior) if known > EXCLUDED_LOG_PRIOR)
    return PromptTree(
        tree.prompt, one.label_tokens, None if len(open_to) == len(one.label_tokens) else open_to, one.constrained
    )


def count_loss_terms(one: TrainingExample) -> int:
    """How many losses it has: one of a choice, one of each token of an answer."""
    return 1 if isinstance(one, LabelExample) else len(build_prompt_tree(one).completions[0])


def example_log_likelihood(one: TrainingExample, logliks: Sequence[float]) -> float:
    """Of what it teaches, nats, by the log-likelihoods of its tree's logliks."""
    if not isinstance(one, LabelExample):
        return logliks[0]
    return float(one.label_log_probs(logliks)[one.target_index])


def example_losses(scores: TokenLogLikelihoods, taught: Sequence[TrainingExample]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods [losses], nats, and the one that each belongs to; `scores` are of a pass of these."""
    chosen = [(place, one) for place, one in enumerate(taught) if isinstance(one, LabelExample)]
    if not chosen:
        return -scores.log_likelihoods, scores.row
    device, many = scores.log_likelihoods.device, max(len(one.label_tokens) for _, one in chosen)
    place = torch.tensor([place for place, _ in chosen], device=device)
    known = torch.full((len(chosen), many), EXCLUDED_LOG_PRIOR, device=device)
    for n, (_, one) in enumerate(chosen):
        known[n, : len(one.log_prior)] = torch.tensor(one.log_prior, device=device)
    share = torch.tensor([one.model_weight for _, one in chosen], device=device)
    right = torch.tensor([one.target_index for _, one in chosen], device=device)
    branch = torch.tensor(scores.completion_index, device=device)
    sums = scores.log_likelihoods.new_zeros(len(taught) * many).index_add(
        0, scores.row * many + branch, scores.log_likelihoods
    )
    decided = (share[:, None] * sums.view(-1, many)[place] + known).log_softmax(1)
    by_token = ~torch.isin(scores.row, place)
    found = torch.cat([-scores.log_likelihoods[by_token], -decided[torch.arange(len(chosen), device=device), right]])
    return found, torch.cat([scores.row[by_token], place])
