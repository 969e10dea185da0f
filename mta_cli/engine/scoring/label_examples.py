"""Training examples for tasks with labels: the loss of choosing a label, given a label prior.

Trained on answer tokens alone, anchors and stacks mostly learn how often a user gives each label. If the label memory
(neighbours and label prior) is added to the model's scores, these frequencies would count twice. So the loss is the
negative log-likelihood under the same sum that decides answers (see `label_prior.add_label_prior`), and the model
learns only what the memory does not know.
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

MIN_LABEL_PROBABILITY = 0.01  # labels below this probability are dropped from training and evidence
# nats: the largest difference between labels in the log-probability that they lose to other tokens; see `restricted`
MAX_RESTRICTION_SPREAD = 0.2
EXCLUDED_LOG_PRIOR = float("-inf")


@dataclass(frozen=True)
class LabelExample:
    """A row that is learned as a choice among labels.

    `label_tokens` has the tokens of each label, and `target_index` is the correct label. A label's score is
    `model_weight` times its log-likelihood plus its `log_prior` (nats). A label whose `log_prior` is −∞ is excluded and
    not computed. If `constrained`, each token's log-likelihood is normalised over the tokens that can continue a label
    there, not over the whole vocabulary.
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
        """The example of the query `text`, asked at `time`. `prior` gives the log-priors and the model's weight."""
        known = tuple(prior(text, time))
        return cls(row, tuple(map(tuple, label_tokens)), target_index, known, prior.model_weight)

    def label_log_probs(self, logliks: Sequence[float]) -> Tensor:
        """Log-probability of each label [labels], float64, given the labels' log-likelihoods `logliks` (nats)."""
        read, known = torch.tensor(logliks, dtype=torch.float64), torch.tensor(self.log_prior, dtype=torch.float64)
        return (self.model_weight * read + known).log_softmax(0)

    def pruned(self, logliks: Sequence[float]) -> LabelExample:
        """The example without labels of probability below `MIN_LABEL_PROBABILITY`. The correct label always stays."""
        chances = self.label_log_probs(logliks).exp().tolist()
        kept = [label == self.target_index or chance >= MIN_LABEL_PROBABILITY for label, chance in enumerate(chances)]
        return replace(
            self,
            log_prior=tuple(v if stays else EXCLUDED_LOG_PRIOR for v, stays in zip(self.log_prior, kept, strict=True)),
        )

    def restricted(self, logliks: Sequence[float], closed: Sequence[float]) -> LabelExample:
        """The `constrained` form of the example, which is faster, because few logits are computed.

        `logliks` are the labels' log-likelihoods over the whole vocabulary, `closed` their constrained ones. The
        differences are added to the prior, so that the scores stay the same. If these differences vary too much between
        labels, for example because the model cannot spell them yet, the example is returned unchanged.
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
    """The training row of the prompt and the given answer."""
    return one.row if isinstance(one, LabelExample) else one


def build_prompt_tree(one: TrainingExample) -> PromptTree:
    """The prompt tree that a training step on the example runs."""
    tree = PromptTree.from_row(prompt_answer_row(one))
    if not isinstance(one, LabelExample):
        return tree
    open_to = tuple(label for label, known in enumerate(one.log_prior) if known > EXCLUDED_LOG_PRIOR)
    return PromptTree(
        tree.prompt, one.label_tokens, None if len(open_to) == len(one.label_tokens) else open_to, one.constrained
    )


def count_loss_terms(one: TrainingExample) -> int:
    """The number of losses of an example: 1 for a label example, otherwise one for each answer token."""
    return 1 if isinstance(one, LabelExample) else len(build_prompt_tree(one).completions[0])


def example_log_likelihood(one: TrainingExample, logliks: Sequence[float]) -> float:
    """The log-likelihood (nats) of the example's target, given the log-likelihoods of its tree's completions."""
    if not isinstance(one, LabelExample):
        return logliks[0]
    return float(one.label_log_probs(logliks)[one.target_index])


def example_losses(scores: TokenLogLikelihoods, taught: Sequence[TrainingExample]) -> tuple[Tensor, Tensor]:
    """The losses of a pass [losses], negative log-likelihoods in nats, and the example of each loss [losses].

    Examples are given by their index in `taught`. `scores` are the results of the pass over the prompt trees of
    `taught`, in the same order.
    """
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
    losses = torch.cat([-scores.log_likelihoods[by_token], -decided[torch.arange(len(chosen), device=device), right]])
    return losses, torch.cat([scores.row[by_token], place])
