"""Temperature scaling: turns label scores into probabilities, in the same way for every method.

Scores are log-likelihoods of labels, in nats, that need not sum to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from mta_cli.engine.text.labels import find_label

Array = npt.NDArray[np.float64]

MAX_LOG_TEMPERATURE = 3.0  # a temperature is between e⁻³ and e³
NO_LABEL_LOGLIK = math.log(1e-6)  # nats, for a gold answer that is not a label


def fit_temperature(scores: npt.ArrayLike, golds: Sequence[int]) -> float:
    """The temperature T that maximises the likelihood of the correct labels under softmax(scores / T) (Guo et al. 2017,
    arXiv 1706.04599).

    `scores` is `[queries, labels]`, finite; `golds` are the indices of the correct labels. Returns 1 without queries.
    Raises ValueError if the numbers of golds and queries differ, or if a gold is not a label index.
    """
    if not len(golds):
        return 1.0
    values, rows = np.asarray(scores, dtype=np.float64), np.arange(len(golds))
    if len(values) != len(golds) or min(golds) < 0 or max(golds) >= values.shape[1]:
        raise ValueError(f"{len(golds)} gold labels with indices up to {max(golds)} for scores of shape {values.shape}")

    def loss(log_temperature: float) -> float:
        return -float(log_probabilities(values, math.exp(log_temperature))[rows, golds].mean())

    return math.exp(minimize_scalar(loss, bounds=(-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE), method="bounded").x)


def log_probabilities(scores: npt.ArrayLike, temperature: float) -> Array:
    """log softmax(scores / temperature) over the last axis, `[..., labels]` → `[..., labels]`."""
    values: Array = log_softmax(np.asarray(scores, dtype=np.float64) / temperature, axis=-1)
    return values


def gold_loglik(scores: npt.ArrayLike, labels: Sequence[str], gold: str, temperature: float = 1.0) -> float:
    """The log-probability (nats) of the label `gold`, from the `scores` of all `labels`; `NO_LABEL_LOGLIK` if `gold` is
    not a label.
    """
    wanted = find_label(gold, labels)
    if wanted is None:
        return NO_LABEL_LOGLIK
    return float(log_probabilities(scores, temperature)[wanted])
