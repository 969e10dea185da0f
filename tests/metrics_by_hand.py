"""LaMP's metrics (arXiv 2304.11406) over plain lists, by hand: what sums over people must equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mta_cli.engine.evaluation.metrics import MAX_SCORE, MIN_SCORE, rouge_1, rouge_l, score_errors


def accuracy(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Share of answers, stripped, that are exactly the gold; an answer that is not a label counts as wrong. NaN without
    answers.
    """
    pairs = _stripped(answers, golds)
    known = set(labels)
    return _mean([float(answer == gold and answer in known) for answer, gold in pairs])


def macro_f1(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Unweighted mean of the F1 of every label in `labels`; one that neither occurs nor is answered counts as 0.

    The list is fixed, so that the number means the same on every sample. NaN for no answers.
    """
    pairs = _stripped(answers, golds)
    if not pairs:
        return math.nan
    answered, wanted = Counter(answer for answer, _ in pairs), Counter(gold for _, gold in pairs)
    right = Counter(gold for answer, gold in pairs if answer == gold)
    return _mean([_ratio(2 * right[label], answered[label] + wanted[label]) for label in labels])


def mae(answers: Sequence[str], golds: Sequence[str], *, low: float = MIN_SCORE, high: float = MAX_SCORE) -> float:
    """Mean absolute error. An answer that is not a number counts as the end of the scale farther from the gold."""
    return _mean([abs(error) for error in score_errors(answers, golds, low=low, high=high)])


def rmse(answers: Sequence[str], golds: Sequence[str], *, low: float = MIN_SCORE, high: float = MAX_SCORE) -> float:
    """Root of the mean squared error of scores, with the same rule as `mae`."""
    return math.sqrt(_mean([error * error for error in score_errors(answers, golds, low=low, high=high)]))


def mean_rouge(answers: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1 and ROUGE-L over all pairs, as LaMP reports them."""
    pairs = list(zip(answers, golds, strict=True))
    return {
        "rouge_1": _mean([rouge_1(answer, gold) for answer, gold in pairs]),
        "rouge_l": _mean([rouge_l(answer, gold) for answer, gold in pairs]),
    }


def score(metric: str, answers: Sequence[str], golds: Sequence[str], labels: Sequence[str] = ()) -> dict[str, float]:
    """Every number that a task's metric gives: accuracy and macro_f1, mae and rmse, or rouge_1 and rouge_l."""
    if metric == "accuracy":
        return {"accuracy": accuracy(answers, golds, labels), "macro_f1": macro_f1(answers, golds, labels)}
    if metric == "mae":
        ends = [float(label) for label in labels] or [MIN_SCORE, MAX_SCORE]
        low, high = min(ends), max(ends)
        return {
            "mae": mae(answers, golds, low=low, high=high),
            "rmse": rmse(answers, golds, low=low, high=high),
        }
    if metric == "rouge":
        return mean_rouge(answers, golds)
    raise ValueError(f"there is no metric {metric!r}")


def _stripped(answers: Sequence[str], golds: Sequence[str]) -> list[tuple[str, str]]:
    return [(answer.strip(), gold.strip()) for answer, gold in zip(answers, golds, strict=True)]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
