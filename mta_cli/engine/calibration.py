"""From labels' scores to probabilities and decisions, the same for every method. Knows neither models nor people.

Scores are log-likelihoods of labels, in nats, that need not sum to one.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

Array = npt.NDArray[np.float64]

WIDEST = 3.0  # a temperature is between e⁻³ and e³
RAREST = 1e-4  # a label that nobody gives counts as this frequent
HALF = 0.5 - 1e-9  # of a probability that was summed in floating point


def temperature(scores: npt.ArrayLike, golds: Sequence[int]) -> float:
    """The T that makes the golds likeliest under softmax(scores / T) (Guo et al. 2017, arXiv 1706.04599).

    `scores` is `[queries, labels]`, finite; `golds` are the golds' places among the labels. 1 for no queries. Raises
    ValueError for another number of golds than of queries, and for a gold that is no label's place.
    """
    if not len(golds):
        return 1.0
    values, rows = np.asarray(scores, dtype=np.float64), np.arange(len(golds))
    if len(values) != len(golds) or min(golds) < 0 or max(golds) >= values.shape[1]:
        raise ValueError(f"{len(golds)} golds, up to {max(golds)}, for scores of shape {values.shape}")

    def loss(log_temperature: float) -> float:
        return -float(log_probabilities(values, math.exp(log_temperature))[rows, golds].mean())

    return math.exp(minimize_scalar(loss, bounds=(-WIDEST, WIDEST), method="bounded").x)


def log_probabilities(scores: npt.ArrayLike, temperature: float) -> Array:
    """log softmax(scores / temperature) over the last axis, `[..., labels]` → `[..., labels]`."""
    values: Array = log_softmax(np.asarray(scores, dtype=np.float64) / temperature, axis=-1)
    return values


def decide(log_probabilities: npt.ArrayLike, labels: Sequence[str], metric: str) -> int:
    """The place of the label to answer, given each one's log-probability, `[labels]`.

    For `accuracy` the likeliest, the first of equals. For `mae` the median, which minimises the expected absolute
    error: the lowest label up to which probabilities, in the order of the labels' numbers, sum to one half. Raises
    ValueError for another metric, and for labels that are no numbers where they must be.
    """
    values = np.asarray(log_probabilities, dtype=np.float64)
    if metric == "accuracy":
        return int(values.argmax())
    if metric != "mae":
        raise ValueError(f"no label is decided on by {metric!r}")
    order = np.argsort([float(label) for label in labels], kind="stable")
    cumulative = np.exp(values)[order].cumsum()
    return int(order[np.searchsorted(cumulative, HALF * cumulative[-1])])


def label_rates(outputs: Sequence[str], labels: Sequence[str], smoothing: float = 1.0) -> tuple[float, ...]:
    """How often each label is given, as if each had been given `smoothing` times more (Laplace); they sum to one.

    What is no label is left out. Equal rates where there is nothing to count.
    """
    counts = _counts(outputs, labels)
    total = sum(counts) + smoothing * len(labels)
    return tuple((count + smoothing) / total if total else 1 / len(labels) for count in counts)


def habit(outputs: Sequence[str], labels: Sequence[str], rates: Sequence[float], strength: float) -> tuple[float, ...]:
    """What a person's own answers add to each label's score: the log of their rate over everybody's, nats.

    Their rate is the posterior mean under a Dirichlet prior of `strength` answers at `rates`, so without answers
    nothing is added. What is no label is left out. Raises ValueError for a strength that is not above 0, and for
    another number of rates than of labels.
    """
    if strength <= 0:
        raise ValueError(f"the strength of a habit is above 0, not {strength}")
    counts = _counts(outputs, labels)
    total = sum(counts) + strength
    known = [max(rate, RAREST) for rate in rates]
    return tuple(
        math.log((count + strength * rate) / (total * rate)) for count, rate in zip(counts, known, strict=True)
    )


def _counts(outputs: Sequence[str], labels: Sequence[str]) -> list[int]:
    counted = Counter(output.strip() for output in outputs)
    return [counted[label] for label in labels]
