"""How answers are scored, as LaMP defines it (arXiv 2304.11406). Pure Python; knows neither models nor users."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LOWEST, HIGHEST = 1.0, 5.0  # the scale of LaMP's scores

_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Overlap:
    """One ROUGE score; each part is from 0 to 1."""

    precision: float
    recall: float
    f1: float


def accuracy(answers: Sequence[str], golds: Sequence[str], labels: Sequence[str]) -> float:
    """Share of answers, stripped, that are exactly the gold; what is no label counts as wrong. NaN for no answers."""
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


def mae(answers: Sequence[str], golds: Sequence[str], *, low: float = LOWEST, high: float = HIGHEST) -> float:
    """Mean absolute error. An answer that is no number counts as the end of the scale farther from the gold."""
    return _mean([abs(error) for error in score_errors(answers, golds, low=low, high=high)])


def rmse(answers: Sequence[str], golds: Sequence[str], *, low: float = LOWEST, high: float = HIGHEST) -> float:
    """Root of the mean squared error of scores, with the same rule as `mae`."""
    return math.sqrt(_mean([error * error for error in score_errors(answers, golds, low=low, high=high)]))


def score_errors(
    answers: Sequence[str], golds: Sequence[str], *, low: float = LOWEST, high: float = HIGHEST
) -> list[float]:
    """Answer minus gold for each pair. Raises ValueError for a gold that is no number."""
    errors = []
    for answer, raw in _stripped(answers, golds):
        gold = float(raw)
        given = _number(answer)
        errors.append((low if abs(gold - low) > abs(gold - high) else high) - gold if given is None else given - gold)
    return errors


def rouge_1(answer: str, gold: str) -> Overlap:
    """Overlap of single words: lower case, letters a–z and digits only, no stemming (as Google's `rouge_score`)."""
    ours, theirs = _words(answer), _words(gold)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return _overlap(shared, len(ours), len(theirs))


def rouge_l(answer: str, gold: str) -> Overlap:
    """Overlap by the longest common subsequence of words, which need not stand next to each other."""
    ours, theirs = _words(answer), _words(gold)
    return _overlap(_longest_common(ours, theirs), len(ours), len(theirs))


def mean_rouge(answers: Sequence[str], golds: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1 and ROUGE-L over all pairs, as LaMP reports them."""
    pairs = list(zip(answers, golds, strict=True))
    return {
        "rouge_1": _mean([rouge_1(answer, gold).f1 for answer, gold in pairs]),
        "rouge_l": _mean([rouge_l(answer, gold).f1 for answer, gold in pairs]),
    }


def score(metric: str, answers: Sequence[str], golds: Sequence[str], labels: Sequence[str] = ()) -> dict[str, float]:
    """Every number that a task's metric gives: accuracy and macro_f1, mae and rmse, or rouge_1 and rouge_l."""
    if metric == "accuracy":
        return {"accuracy": accuracy(answers, golds, labels), "macro_f1": macro_f1(answers, golds, labels)}
    if metric == "mae":
        low, high = scale(labels)
        return {
            "mae": mae(answers, golds, low=low, high=high),
            "rmse": rmse(answers, golds, low=low, high=high),
        }
    if metric == "rouge":
        return mean_rouge(answers, golds)
    raise ValueError(f"there is no metric {metric!r}")


def scale(labels: Sequence[str]) -> tuple[float, float]:
    """The lowest and the highest of a task's scores; LaMP's where it lists none."""
    ends = [float(label) for label in labels] or [LOWEST, HIGHEST]
    return min(ends), max(ends)


def _stripped(answers: Sequence[str], golds: Sequence[str]) -> list[tuple[str, str]]:
    return [(answer.strip(), gold.strip()) for answer, gold in zip(answers, golds, strict=True)]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _longest_common(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


def _overlap(shared: int, ours: int, theirs: int) -> Overlap:
    return Overlap(_ratio(shared, ours), _ratio(shared, theirs), _ratio(2 * shared, ours + theirs))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
