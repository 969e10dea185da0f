"""Which of a task's labels a text names. Where the labels are whole numbers, equal numbers are one label."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


def find_label(text: str, labels: Sequence[str]) -> int | None:
    """The index of the label that `text` names, without white space around it; None where it names none.

    Of labels `1` to `5`, `01` and `1.0` name the first.
    """
    exact, numbers = _indices(tuple(labels))
    text = text.strip()
    if text in exact or not numbers:
        return exact.get(text)
    try:
        return numbers.get(float(text))
    except ValueError:
        return None


@lru_cache(maxsize=64)
def _indices(labels: tuple[str, ...]) -> tuple[dict[str, int], dict[float, int]]:
    """The index of each label by its text, and by its number where all labels are different whole numbers."""
    exact = {label: i for i, label in reversed(list(enumerate(labels)))}
    try:
        numbers = {float(int(label)): i for i, label in enumerate(labels)}
    except ValueError:
        return exact, {}
    return exact, numbers if len(numbers) == len(labels) else {}
