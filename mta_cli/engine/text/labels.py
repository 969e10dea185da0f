"""Finds the task's label that a text names. If all labels are numbers, they are compared as numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

_NUMBER = re.compile(r"[+-]?\d{1,9}(\.\d{1,20})?", re.ASCII)


def parse_number(label: str) -> float | None:
    """The number that a label spells, such as `4` or `3.5`; None for words, `nan` and `1e3`."""
    return float(label) if _NUMBER.fullmatch(label) else None


def format_number(number: float) -> str:
    """A number as a label: `4` for 4.0, `3.5`; at most six decimals."""
    return f"{number:.6f}".rstrip("0").rstrip(".")


def round_number(number: float, step: float) -> float:
    """The nearest multiple of `step`; a float exactly halfway is rounded up."""
    return math.floor(number / step + 0.5) * step


def find_label(text: str, labels: Sequence[str]) -> int | None:
    """The index of the label that `text` names, ignoring surrounding white space; None if it names none.

    With labels `1` to `5`, the texts `01` and `1.0` name the first.
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
    """The index of each label by its text, and by its number if all labels are different numbers."""
    exact = {label: i for i, label in reversed(list(enumerate(labels)))}
    numbers = {number: i for i, label in enumerate(labels) if (number := parse_number(label)) is not None}
    return exact, numbers if len(numbers) == len(labels) else {}
