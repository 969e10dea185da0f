"""Statistics over users: intervals, paired differences, and the detectable difference of a design.

Resampling draws users, never single queries, because the queries of a user are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mta_cli.engine.evaluation.user_sums import Array, UserSums

MAX_WEIGHTS_IN_MEMORY = 1 << 20  # entries of a [draws, users] matrix that are held at once
TIE_TOLERANCE = 1e-10  # statistics closer than this differ by rounding only
MDE_STANDARD_ERRORS = 2.8  # 1.96 for a two-sided 5 % test + 0.84 for 80 % power, in standard errors (Bloom 1995)
# assumed intraclass correlation: the share of the variance of a query's difference that is between users
BETWEEN_USER_VARIANCE = 0.1

Values = dict[str, Array]


def bootstrap_metrics(tally: UserSums, *, seed: int, draws: int = 2000) -> dict[str, dict[str, float]]:
    """Each metric as `{value, low, high}`: a 95 % percentile bootstrap over users (Efron & Tibshirani 1993, ch. 13)."""
    samples = _samples(np.random.default_rng(seed), len(tally.users), draws)
    drawn = _joined(tally.metrics_from_sums(weights @ tally.sums) for weights in samples)
    return {name: {"value": value, **_interval(drawn[name])} for name, value in tally.metric_values().items()}


def paired_difference(a: UserSums, b: UserSums, *, seed: int, draws: int = 10_000) -> dict[str, dict[str, float]]:
    """Each metric's a − b as `{value, low, high, p}`, paired by user.

    The interval is the 95 % percentile bootstrap over users, the same users drawn for both. p is two-sided, from a
    permutation test that randomly swaps the two methods' sums within users; the observed assignment counts as one of
    the draws, so p is never 0 (Phipson & Smyth 2010). Metrics that only one method has are left out. Raises ValueError
    unless both are of one task and hold the same users and golds.
    """
    _require_paired_sums(a, b)
    bootstrap, permutation = np.random.default_rng(seed).spawn(2)
    users = len(a.users)
    value = _minus(a.metrics_from_sums(a.sums.sum(axis=0)), b.metrics_from_sums(b.sums.sum(axis=0)))
    samples = _samples(bootstrap, users, draws)
    drawn = _joined(
        _minus(a.metrics_from_sums(weights @ a.sums), b.metrics_from_sums(weights @ b.sums)) for weights in samples
    )
    swapped = _joined(_swapped_differences(a, b, permutation, count) for count in _chunk_sizes(users, draws))
    return {
        name: {"value": float(difference), **_interval(drawn[name]), "p": _p_value(difference, swapped[name])}
        for name, difference in value.items()
    }


def paired_differences(
    user_sums: Mapping[str, UserSums], pairs: Sequence[tuple[str, str]], *, seed: int
) -> list[dict[str, Any]]:
    """For each pair of methods (a, b) and each metric, `paired_difference` with p also adjusted over all pairs.

    A row is `{a, b, metric, value, low, high, p, p_holm}`.
    """
    rows: list[dict[str, Any]] = [
        {"a": a, "b": b, "metric": metric, **values}
        for a, b in pairs
        for metric, values in paired_difference(user_sums[a], user_sums[b], seed=seed).items()
    ]
    for metric in {row["metric"] for row in rows}:
        family = [row for row in rows if row["metric"] == metric]
        for row, adjusted in zip(family, holm_adjusted([row["p"] for row in family]), strict=True):
            row["p_holm"] = adjusted
    return rows


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method (Holm 1979, Scand. J. Statist. 6), in given order.

    Rejecting the values that are at most α keeps the family-wise error rate at most α under any dependence.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def minimum_detectable_effect(a: UserSums, b: UserSums, metric: str) -> float:
    """The smallest true |a − b| that a two-sided 5 % test on such users detects with 80 % power.

    2.8 standard errors (Bloom 1995, "Minimum detectable effects"), by the jackknife over users (Efron & Tibshirani
    1993, ch. 11). 0 if both methods give the same answers, infinite for a single user. Raises the errors of
    `paired_difference`, and ValueError for a metric that only one method has.
    """
    _require_paired_sums(a, b)
    users = len(a.users)
    if users < 2:
        return math.inf
    others_a, others_b = a.sums.sum(axis=0) - a.sums, b.sums.sum(axis=0) - b.sums  # [users, 2 + columns]
    leave_one_out = _minus(a.metrics_from_sums(others_a), b.metrics_from_sums(others_b))
    if metric not in leave_one_out:
        raise ValueError(f"the two methods do not both have the metric {metric!r}, only {', '.join(leave_one_out)}")
    return MDE_STANDARD_ERRORS * math.sqrt((users - 1) * float(leave_one_out[metric].var()))


def planned_detectable_effect(
    queries_per_user: Sequence[int], spread: float, between: float = BETWEEN_USER_VARIANCE
) -> float:
    """The `minimum_detectable_effect` of a mean over queries, before any answer is known.

    `spread` is the standard deviation of one query's difference, `between` the correlation of two queries' differences
    within a user (0 to 1). Over N queries, the variance of the mean is spread² / N times the design effect 1 + (m −
    1)·between for m queries per user (Kish 1965, "Survey Sampling"). If the numbers mᵤ are unequal, m = Σmᵤ² / Σmᵤ
    (Eldridge, Ashby & Kerry 2006, Int. J. Epidemiol. 35). Raises ValueError without queries and for impossible values.
    """
    counts = np.asarray(queries_per_user, dtype=np.float64)
    if counts.sum() <= 0 or counts.min() < 0 or spread < 0 or not 0 <= between <= 1:
        raise ValueError(f"impossible design: {len(counts)} users, spread {spread}, correlation {between}")
    effect = 1 + ((counts**2).sum() / counts.sum() - 1) * between
    return float(MDE_STANDARD_ERRORS * spread * math.sqrt(effect / counts.sum()))


def _samples(rng: np.random.Generator, users: int, draws: int) -> Iterator[Array]:
    """Yields bootstrap counts of each user, `[some draws, users]` at a time."""
    for count in _chunk_sizes(users, draws):
        drawn = rng.integers(users, size=(count, users)) + users * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * users).reshape(count, users).astype(np.float64)


def _chunk_sizes(users: int, draws: int) -> Iterator[int]:
    most = max(1, MAX_WEIGHTS_IN_MEMORY // users)
    for start in range(0, draws, most):
        yield min(most, draws - start)


def _swapped_differences(a: UserSums, b: UserSums, rng: np.random.Generator, draws: int) -> Values:
    """For each metric, the differences `[draws]` after swapping the two methods for randomly chosen users."""
    swap = rng.integers(2, size=(draws, len(a.users))).astype(np.float64)  # [draws, users]
    stay = 1 - swap
    return _minus(
        a.metrics_from_sums(stay @ a.sums + swap @ b.sums), b.metrics_from_sums(stay @ b.sums + swap @ a.sums)
    )


def _minus(a: Values, b: Values) -> Values:
    return {name: a[name] - b[name] for name in a if name in b}


def _joined(portions: Iterable[Values]) -> Values:
    parts = list(portions)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _interval(drawn: Array) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _p_value(difference: npt.ArrayLike, swapped: Array) -> float:
    extreme = np.abs(swapped) >= np.abs(difference) - TIE_TOLERANCE
    return float((1 + extreme.sum()) / (1 + len(swapped)))


def _require_paired_sums(a: UserSums, b: UserSums) -> None:
    if (a.metric, a.labels) != (b.metric, b.labels):
        raise ValueError(
            f"the methods were measured on different tasks: {a.metric} {a.labels} and {b.metric} {b.labels}"
        )
    if a.users != b.users:
        raise ValueError(f"the methods were measured on different users: {len(a.users)} and {len(b.users)}")
    if a.golds != b.golds:
        raise ValueError("the methods were measured on different queries of the same users")
