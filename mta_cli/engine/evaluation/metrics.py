"""Metrics of answers as LaMP defines them (arXiv 2304.11406), in pure Python."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MIN_SCORE, MAX_SCORE = 1.0, 5.0  # the scale of LaMP's scores
MAIN_METRICS = {"accuracy": "accuracy", "mae": "mae", "rouge": "rouge_1"}
"""For each metric that a task may have, the name of the result that is shown first."""

_UNSPACED = (  # scripts written without spaces
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    r"\u3005-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana
    r"\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}][^\s{_UNSPACED}]*")


def score_errors(
    answers: Sequence[str], golds: Sequence[str], *, low: float = MIN_SCORE, high: float = MAX_SCORE
) -> list[float]:
    """Answer minus correct score (gold) for each pair. Raises ValueError for a gold that is not a finite number.

    An answer that is not a number counts as `low` or `high`, whichever is farther from the gold.
    """
    errors = []
    for answer, raw in zip(answers, golds, strict=True):
        gold, given = score_of(raw), score_of(answer)
        if gold is None:
            raise ValueError(f"{raw!r} is not a finite number")
        errors.append((low if abs(gold - low) > abs(gold - high) else high) - gold if given is None else given - gold)
    return errors


def score_of(text: str) -> float | None:
    """The finite number that a text spells; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def rouge_1(answer: str, gold: str) -> float:
    """F1 of shared single words: letters, digits and their marks, lower case, no stemming.

    In scripts without spaces each character is a word. For ASCII texts the words are the same as in Google's
    `rouge_score`, which reads only a–z and digits: it splits `naïve` and finds no words in Cyrillic.
    """
    ours, theirs = _words(answer), _words(gold)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return _f1(shared, len(ours), len(theirs))


def rouge_l(answer: str, gold: str) -> float:
    """F1 of the longest common subsequence of words, which need not be adjacent."""
    ours, theirs = _words(answer), _words(gold)
    return _f1(_lcs_length(ours, theirs), len(ours), len(theirs))


def score_range(labels: Sequence[str]) -> tuple[float, float]:
    """The lowest and the highest score of a task; LaMP's scale if the task lists none."""
    ends = [float(label) for label in labels] or [MIN_SCORE, MAX_SCORE]
    return min(ends), max(ends)


def _words(text: str) -> list[str]:
    composed = unicodedata.normalize("NFC", text.lower())
    return _WORD.findall(
        "".join(one if one.isalnum() or unicodedata.category(one)[0] == "M" else " " for one in composed)
    )


def _lcs_length(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, 1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


def _f1(shared: int, ours: int, theirs: int) -> float:
    return 2 * shared / (ours + theirs) if ours + theirs else 0.0
