"""Guesses the roles of a table's columns and the kind of its task from a sample of rows.

A guess is only shown to the user or used in an example command; imports need confirmation.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.labels import format_number, parse_number
from mta_cli.pipeline.data.column_mapping import ColumnMapping, cell_text
from mta_cli.pipeline.data.formats.timestamps import normalise_time

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import TaskKind

USER_WORDS = frozenset(
    [
        "user",
        "username",
        "userid",
        "person",
        "author",
        "reviewer",
        "reader",
        "member",
        "customer",
        "client",
        "account",
        "participant",
        "student",
        "player",
        "annotator",
        "rater",
        "worker",
        "employee",
        "sender",
        "email",
        "nickname",
        "login",
        "who",
        "by",
    ]
)
TIME_WORDS = frozenset(
    ["time", "date", "datetime", "timestamp", "created", "updated", "day", "when", "at", "on", "published"]
)
OUTPUT_WORDS = frozenset(
    [
        "output",
        "rating",
        "stars",
        "score",
        "label",
        "class",
        "category",
        "tag",
        "answer",
        "response",
        "reply",
        "completion",
        "target",
        "gold",
        "grade",
        "sentiment",
        "verdict",
        "decision",
        "choice",
        "result",
        "mark",
        "vote",
        "rated",
    ]
)
INPUT_WORDS = frozenset(["input", "prompt", "question", "instruction", "query"])
"""A column with one of these names is the whole input."""

MAX_LABELS = 50
MAX_LABEL_CHARACTERS = 40
MAX_SCORES = 21
"""The most scores of a scale: 0 to 20, or 0 to 10 in halves."""
_INPUT_COLUMNS = 4
_MAX_MISSING_SHARE = 0.05  # the largest share of outputs that may be codes for a missing score
_MIN_SHARE = 0.9  # a column counts as dates (or as numbers) if at least this share of its cells are
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


@dataclass(frozen=True)
class ColumnGuess:
    """A mapping of the guessed columns, and an example cell of each column."""

    columns: ColumnMapping
    examples: Mapping[str, str]


@dataclass(frozen=True)
class OutputGuess:
    """The kind of task that outputs suggest, with its labels or all scores of its scale, in order.

    `step` is the distance between scores; outputs are rounded to its multiples.
    """

    kind: TaskKind
    labels: tuple[str, ...] = ()
    step: float = 0.0


@dataclass(frozen=True)
class _Column:
    name: str
    cells: Sequence[str]  # of all rows; "" for a missing cell

    @property
    def filled(self) -> list[str]:
        return [cell for cell in self.cells if cell]

    @property
    def distinct(self) -> int:
        return len(set(self.filled))

    @property
    def length(self) -> float:
        return sum(map(len, self.filled)) / max(len(self.filled), 1)

    @property
    def is_short(self) -> bool:
        """Whether the cells are short enough for names or labels."""
        return self.length <= MAX_LABEL_CHARACTERS

    def share(self, test: Callable[[str], object]) -> float:
        return sum(bool(test(cell)) for cell in self.filled) / max(len(self.filled), 1)

    def is_named(self, words: frozenset[str]) -> bool:
        return bool(words & {word.casefold() for word in _WORDS.findall(self.name)})

    @property
    def repeats(self) -> bool:
        """Whether there are at most half as many different values as cells."""
        return 1 <= self.distinct <= max(len(self.filled) / 2, 1)

    @property
    def is_number(self) -> bool:
        return self.share(lambda cell: parse_number(cell) is not None) >= _MIN_SHARE

    @property
    def is_date(self) -> bool:
        """Whether the cells are dates with at least a month, whatever the column's name."""
        return self.share(_is_date) >= _MIN_SHARE

    @property
    def is_named_time(self) -> bool:
        """Whether the cells are years or Unix times and the column's name fits."""
        return self.is_named(TIME_WORDS) and self.share(_is_time) >= _MIN_SHARE

    @property
    def is_text(self) -> bool:
        return self.share(lambda cell: any(char.isalpha() for char in cell) and "://" not in cell) >= 0.5


def guess_columns(rows: Sequence[Mapping[str, Any]], *, given: Collection[str] = ()) -> ColumnGuess:
    """Guess the columns of user, output, time and input, by names and by content.

    The time is a column of dates. The output is a column with a known name, else one of few different values, else the
    last text column. The user is a column of repeated values with a known name or short texts. The input is all other
    text except an `id`, at most four columns. Parts in `given` are not guessed; their columns are not in the rows.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [_Column(name, [cell_text(row.get(name)).strip() for row in rows]) for name in names]
    examples = {column.name: next(iter(column.filled), "") for column in columns}
    left = [column for column in columns if column.filled]

    def take_first_match(part: str, *rules: Callable[[_Column], bool]) -> _Column | None:
        if part in given:
            return None
        found = next((column for rule in rules for column in left if rule(column)), None)
        if found is not None:
            left.remove(found)
        return found

    time = take_first_match("time", lambda column: column.is_date, lambda column: column.is_named_time)
    user = take_first_match(
        "user",
        lambda column: column.name.casefold() == "user",
        lambda column: column.is_named(USER_WORDS) and column.is_short and column.repeats,
        lambda column: column.is_named(USER_WORDS) and column.is_short and column.distinct < len(column.filled),
    )
    output = take_first_match(
        "output",
        lambda column: column.name.casefold() == "output",
        lambda column: column.is_named(OUTPUT_WORDS) and column.repeats,
        lambda column: column.is_named(OUTPUT_WORDS),
    )
    if user is None:
        user = take_first_match(
            "user", lambda column: column.distinct > 1 and column.is_text and column.is_short and column.repeats
        )
    if output is None:
        left.reverse()  # an output usually comes after its input
        output = take_first_match("output", lambda column: column.is_short and column.repeats)
        if output is None and len([column for column in left if column.is_text]) > 1:
            output = take_first_match("output", lambda column: column.is_text)
        left.reverse()
    mapping = ColumnMapping(
        user.name if user else None,
        _guess_input([column for column in left if column.name.casefold() != "id"] or left),
        output.name if output else None,
        time.name if time else None,
    )
    return ColumnGuess(mapping, examples)


def _guess_input(columns: Sequence[_Column]) -> str | None:
    """The name of an input column, or a template of several columns in the order of the file; None without any."""
    whole = [column for column in columns if column.is_named(INPUT_WORDS) and column.is_text]
    texts = whole[:1] or [column for column in columns if column.is_text and column.distinct > 1] or columns[:1]
    longest = sorted(texts, key=lambda column: -column.length)[:_INPUT_COLUMNS]
    chosen = [column.name for column in texts if column in longest]
    return ". ".join(f"{{{name}}}" for name in chosen) if len(chosen) > 1 else next(iter(chosen), None)


def guess_kind(outputs: Sequence[str]) -> OutputGuess:
    """Guess the kind of task: scores if nearly all outputs are numbers, labels if few short values repeat, else text.

    The scale leaves out codes for a missing score, such as 99 or -9.
    """
    counts = Counter(text for output in outputs if (text := output.strip()))
    if len(counts) < 2:
        return OutputGuess("text")
    numbers = {text: number for text in counts if (number := parse_number(text)) is not None}
    if sum(counts[text] for text in numbers) >= _MIN_SHARE * counts.total():
        often = Counter[float]()
        for text, number in numbers.items():
            often[number] += counts[text]
        scale, step = _guess_scale(_without_missing_codes(often))
        if scale:
            return OutputGuess("score", scale, step)
    few = len(counts) <= min(MAX_LABELS, max(counts.total() / 3, 2))
    if few and all(len(text) <= MAX_LABEL_CHARACTERS and "\n" not in text for text in counts):
        return OutputGuess("label", tuple(sorted(counts, key=str.casefold)))
    return OutputGuess("text")


def _without_missing_codes(often: Counter[float]) -> list[float]:
    """The different scores in order, without codes for a missing score; `often` has the frequency of each.

    Such codes are at most `_MAX_MISSING_SHARE` of all: negative integers, if no other score is negative and there is
    only one such value or a gap above them; and values above the others by more than twice the others' range, if the
    scale has finer steps without them.
    """
    scores, few = sorted(often), _MAX_MISSING_SHARE * often.total()
    below = [score for score in scores if score < 0]
    if 0 < len(below) <= len(scores) - 3 and not any(score % 1 for score in below):
        many = sum(often[score] for score in below)
        if many <= few and (len(below) == 1 or scores[len(below)] - below[-1] > 1):
            scores, few = scores[len(below) :], few - many
    for end in range(len(scores) - 1, 2, -1):
        few -= often[scores[end]]
        if few < 0:
            break
        is_apart = scores[end] - scores[end - 1] > 2 * (scores[end - 1] - scores[0])
        if is_apart and 0 < _guess_scale(scores[:end])[1] < _guess_scale(scores)[1]:
            scores = scores[:end]
    return scores


def _guess_scale(scores: Sequence[float]) -> tuple[tuple[str, ...], float]:
    """The scale of `scores` and its step: 1 to 5 or 1 to 10 if they lie within, in halves if any score is a half.

    A scale of more than `MAX_SCORES` points gets a larger step, such as 0 to 100 in fives. Empty for fewer than three
    `scores`, and for a scale of fewer than three points.
    """
    if len(scores) < 3:
        return (), 0.0
    least = next((step for step in (1.0, 0.5) if not any(score % step for score in scores)), 0.01)
    low, high = min(scores), max(scores)
    if low > 0 and high <= 10 and least >= 0.5:
        low, high = min(least, low), 5.0 if high <= 5 else 10.0
    for step in _steps(least):
        places = range(math.floor(low / step + 0.5), math.floor(high / step + 0.5) + 1)
        if len(places) <= MAX_SCORES:
            break
    return (tuple(format_number(step * place) for place in places), step) if len(places) > 2 else ((), 0.0)


def _steps(first: float) -> Iterator[float]:
    """Candidate steps of a scale: `first`, then the larger numbers of the series 0.01, 0.02, 0.05, 0.1, …"""
    yield first
    for power in itertools.count(-2):
        yield from (width * 10.0**power for width in (1, 2, 5) if width * 10.0**power > first)


def _is_time(text: str) -> bool:
    try:
        normalise_time(text)
    except ValueError:
        return False
    return True


def _is_date(text: str) -> bool:
    return not text.isdigit() and len(text) >= len("2026-08") and _is_time(text)
