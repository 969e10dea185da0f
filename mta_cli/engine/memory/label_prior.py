"""The choice of a label from scores, and the user's label prior. Pure Python, without a model.

Scores are log-likelihoods of labels, in nats. They need not sum to one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from mta_cli.engine.text.labels import find_label

PRIOR_STRENGTH = 8.0  # the population's rates count as this many answers in a user's label prior
MIN_LABEL_RATE = 1e-4  # the smallest rate, for labels that no user gives
MEDIAN_THRESHOLD = 0.5 - 1e-9  # one half, less a tolerance for rounding


class LabelPrior(Protocol):
    """A prior over a user's answers, computed without a language model."""

    @property
    def model_weight(self) -> float:
        """The weight of the model's log-likelihoods in the sum with this prior."""
        ...

    def __call__(self, text: str, time: str | None = None) -> Sequence[float]:
        """The prior's log-score of each label, nats. `time` is when the question was asked, ISO 8601, if known."""
        ...


RatesUntil = Callable[[str | None], Sequence[float]]
"""The population's rate of each label in the answers up to a time, ISO 8601; None means all answers."""


@dataclass(frozen=True)
class FrequencyLabelPrior:
    """`weight` times `user_label_prior` of the user's `answers`. It uses a question's time but not its text."""

    answers: tuple[str, ...]
    labels: tuple[str, ...]
    rates_until: RatesUntil
    strength: float
    weight: float
    model_weight: float = 1.0

    def __call__(self, text: str, time: str | None = None) -> tuple[float, ...]:
        """See `LabelPrior`."""
        ratios = user_label_prior(self.answers, self.labels, self.rates_until(time), self.strength)
        return tuple(self.weight * value for value in ratios)


def add_label_prior(
    scores: Sequence[float], prior: LabelPrior | None, text: str, time: str | None = None
) -> tuple[float, ...]:
    """The model's log-likelihoods `scores` of the labels, weighted, plus the user's prior for `text`; nats."""
    if prior is None:
        return tuple(scores)
    return tuple(prior.model_weight * score + known for score, known in zip(scores, prior(text, time), strict=True))


def decide_label(scores: Sequence[float], labels: Sequence[str], metric: str) -> int:
    """The index of the label to answer.

    For `accuracy` it is the likeliest label; ties go to the first. For `mae` it is the median, which minimises the
    expected absolute error: the lowest label at which the cumulative probability, in numeric order, reaches one half.
    Raises ValueError for another metric, and for `mae` with labels that are not numbers.
    """
    if metric == "accuracy":
        return max(range(len(labels)), key=scores.__getitem__)
    if metric != "mae":
        raise ValueError(f"there is no rule to choose a label for the metric {metric!r}")
    order, top = sorted(range(len(labels)), key=lambda i: float(labels[i])), max(scores)
    sums = list(accumulate(math.exp(scores[i] - top) for i in order))
    return next(place for place, total in zip(order, sums, strict=True) if total >= MEDIAN_THRESHOLD * sums[-1])


def label_rates(outputs: Sequence[str], labels: Sequence[str]) -> tuple[float, ...]:
    """The frequency of each label with add-one (Laplace) smoothing; the rates sum to one.

    Outputs that are not labels are left out. If none is a label, the rates are equal.
    """
    counts = _count_labels(outputs, labels)
    total = sum(counts) + len(labels)
    return tuple((count + 1) / total for count in counts)


def user_label_prior(
    outputs: Sequence[str], labels: Sequence[str], rates: Sequence[float], strength: float
) -> tuple[float, ...]:
    """The log-ratio of the user's rate of each label over the population's, nats: `log((n_l + κ r_l) / ((n + κ) r_l))`.

    The user's rate is the posterior mean under a Dirichlet prior that counts as κ = `strength` answers at `rates`, so
    a user without answers gets zeros. Outputs that are not labels are left out. Raises ValueError for a strength that
    is not above 0, and where `rates` and `labels` differ in number.
    """
    if strength <= 0:
        raise ValueError(f"the strength of a label prior must be above 0, not {strength}")
    counts = _count_labels(outputs, labels)
    total = sum(counts) + strength
    known = [max(rate, MIN_LABEL_RATE) for rate in rates]
    return tuple(
        math.log((count + strength * rate) / (total * rate)) for count, rate in zip(counts, known, strict=True)
    )


def _count_labels(outputs: Sequence[str], labels: Sequence[str]) -> list[int]:
    counted = Counter(find_label(output, labels) for output in outputs)
    return [counted[i] for i in range(len(labels))]
