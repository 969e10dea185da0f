"""Sums over each user's answers. Every metric of LaMP (arXiv 2304.11406) is a function of such sums.

The metrics of all bootstrap samples therefore follow from one matrix product of user counts and sums. The samples are
drawn in `statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mta_cli.engine.evaluation.metrics import rouge_1, rouge_l, score_errors, score_range
from mta_cli.engine.text.labels import find_label

if TYPE_CHECKING:
    from mta_cli.engine.evaluation.whose import WhoseSums

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class UserSums:
    """One method's answers, added up for each user.

    `sums` is `[users, 2 + columns]`: the number of queries, the log-likelihood of the correct answers (nats; zeros
    unless `has_loglik`) and the metric's own columns. `golds` are each user's correct answers, sorted; two methods can
    be compared only if their golds agree. `whose` are the authorship sums of the users whose answers were scored under
    other users' models too; None if there are none.
    """

    metric: str
    labels: tuple[str, ...]
    users: tuple[int, ...]
    golds: tuple[tuple[str, ...], ...]
    sums: Array
    has_loglik: bool
    whose: WhoseSums | None = None

    def metrics_from_sums(self, sums: Array) -> dict[str, Array]:
        """Every metric of samples from their summed rows, `[..., 2 + columns]` → `[...]`."""
        queries = sums[..., 0]
        values = _FAMILIES[self.metric].measure(sums[..., 2:], queries)
        return {**values, "gold_loglik": sums[..., 1] / queries} if self.has_loglik else values

    def metric_values(self) -> dict[str, float]:
        """Every metric over all queries."""
        return {name: float(value) for name, value in self.metrics_from_sums(self.sums.sum(axis=0)).items()}


def sum_by_user(
    metric: str,
    labels: Sequence[str],
    users: Sequence[int],
    answers: Sequence[str],
    golds: Sequence[str],
    logliks: Sequence[float | None],
) -> UserSums:
    """The sums of one method's answers by user; the sequences have one entry for each query.

    `metric` is accuracy, mae, rouge, or likelihood for texts that were scored but not generated.

    `logliks` are nats, or None for all. Raises ValueError for sequences that are empty or of different lengths, an
    unknown metric, a gold score that is not a number, accuracy without labels, and likelihoods that are partly missing
    or not finite.
    """
    if len({len(users), len(answers), len(golds), len(logliks)}) > 1 or not users:
        raise ValueError(f"{len(users)} users, {len(answers)} answers, {len(golds)} golds, {len(logliks)} likelihoods")
    if metric not in _FAMILIES:
        raise ValueError(f"there is no metric {metric!r}")
    names, places = np.unique(np.asarray(users), return_inverse=True)
    columns = _FAMILIES[metric].columns(answers, golds, labels)
    rows = np.column_stack([np.ones(len(users)), _loglik_column(logliks), columns])
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, places, rows)
    by_user: list[list[str]] = [[] for _ in names]
    for place, gold in zip(places, golds, strict=True):
        by_user[place].append(gold)
    sorted_golds = tuple(tuple(sorted(golds_of_user)) for golds_of_user in by_user)
    return UserSums(metric, tuple(labels), tuple(names.tolist()), sorted_golds, sums, logliks[0] is not None)


def count_metric_columns(metric: str, labels: Sequence[str]) -> int:
    """The number of a metric's own columns in `UserSums.sums`. Raises ValueError for an unknown metric and for accuracy
    without labels.
    """
    if metric not in _FAMILIES or (metric == "accuracy" and not labels):
        raise ValueError(f"there is no metric {metric!r} of {len(labels)} labels")
    return {"accuracy": 3 * len(labels), "likelihood": 0}.get(metric, 2)


def add_user_sums(tallies: Sequence[UserSums]) -> UserSums:
    """The sums of several runs of one method on the same queries, such as several seeds, as one.

    Sums of a user are added, so the number of users stays the same. `whose` is added if all runs measured the same
    users, otherwise it is None. Raises ValueError if there are no runs, or if their tasks, users, numbers of queries or
    golds differ.
    """
    from mta_cli.engine.evaluation.whose import add_whose_sums

    if not tallies:
        raise ValueError("there are no sums to add")
    first = tallies[0]
    if any(
        (one.metric, one.labels, one.has_loglik) != (first.metric, first.labels, first.has_loglik) for one in tallies
    ):
        raise ValueError("they are of different tasks")
    asked = [(one.users, one.golds, one.sums[:, 0].tolist()) for one in tallies]
    if any(own != asked[0] for own in asked):
        raise ValueError("they have different users or queries")
    parts = [one.whose for one in tallies if one.whose is not None]
    alike = len(parts) == len(tallies) and len({part.users for part in parts}) == 1
    return replace(
        first,
        sums=np.sum([one.sums for one in tallies], axis=0),
        whose=add_whose_sums(parts) if alike else None,
    )


def _loglik_column(logliks: Sequence[float | None]) -> Array:
    """Log-likelihoods `[queries]`; zeros if there are none. Raises ValueError if only some are known or finite."""
    known = [value for value in logliks if value is not None]
    if not known:
        return np.zeros(len(logliks))
    if len(known) < len(logliks) or not all(map(math.isfinite, known)):
        raise ValueError("either every query has a finite likelihood, or no query has one")
    return np.array(known, dtype=np.float64)


@dataclass(frozen=True)
class _Family:
    """The metrics of one kind: columns counted for each answer, `[queries, columns]`, and metrics from the columns'
    sums.
    """

    columns: Callable[[Sequence[str], Sequence[str], Sequence[str]], Array]
    measure: Callable[[Array, Array], dict[str, Array]]


def _label_columns(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    """Three columns for each label: correct answers, answers, golds. A text that is not a label counts in none."""
    if not labels:
        raise ValueError("accuracy needs labels")
    answered, wanted = _one_hot(answers, labels), _one_hot(golds, labels)
    return np.concatenate([answered * wanted, answered, wanted], axis=1)


def _one_hot(texts: Sequence[str], labels: Sequence[str]) -> Array:
    found = [find_label(text, labels) for text in texts]
    return np.array([[float(place == i) for i in range(len(labels))] for place in found])


def _label_metrics(sums: Array, queries: Array) -> dict[str, Array]:
    """Macro-F1 is over all labels of the task: a label that is neither a gold nor an answer counts as 0."""
    right, answered, wanted = np.split(sums, 3, axis=-1)
    either = answered + wanted
    f1 = np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)
    return {"accuracy": right.sum(axis=-1) / queries, "macro_f1": f1.mean(axis=-1)}


def _score_columns(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    low, high = score_range(labels)
    errors = np.array(score_errors(answers, golds, low=low, high=high))
    return np.column_stack([np.abs(errors), errors**2])


def _score_metrics(sums: Array, queries: Array) -> dict[str, Array]:
    return {"mae": sums[..., 0] / queries, "rmse": np.sqrt(sums[..., 1] / queries)}


def _no_columns(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    return np.zeros((len(answers), 0))


def _rouge_columns(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> Array:
    pairs = zip(answers, golds, strict=True)
    return np.array([[rouge_1(answer, gold), rouge_l(answer, gold)] for answer, gold in pairs])


def _rouge_metrics(sums: Array, queries: Array) -> dict[str, Array]:
    return {"rouge_1": sums[..., 0] / queries, "rouge_l": sums[..., 1] / queries}


_FAMILIES = {
    "likelihood": _Family(_no_columns, lambda sums, queries: {}),  # texts that were scored but not generated
    "accuracy": _Family(_label_columns, _label_metrics),
    "mae": _Family(_score_columns, _score_metrics),
    "rouge": _Family(_rouge_columns, _rouge_metrics),
}
