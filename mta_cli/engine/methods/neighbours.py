"""Answers from what others answered to the like and from a person's own habit, without a language model.

What any model has to beat where many people answer the like questions; classic collaborative filtering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mta_cli.engine.memory.label_prior import Habit, Prior, decide, habit
from mta_cli.engine.methods.label_priors import COUNT_BYTES, guess
from mta_cli.engine.methods.method import Bench, Made, Method, Person, Settings


@dataclass(frozen=True)
class Guessed:
    """The label that is likeliest, or for scores the median, by people's rates and a prior."""

    prior: Prior
    rates: tuple[float, ...]
    labels: tuple[str, ...]
    metric: str

    def __call__(self, text: str) -> tuple[str, tuple[float, ...]]:
        """See `Direct`."""
        scores = tuple(math.log(rate) + extra for rate, extra in zip(self.rates, self.prior(text), strict=True))
        return self.labels[decide(scores, self.labels, self.metric)], scores


def make(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """A rule for each person; for a task of texts it has nothing to say. Without neighbours the habit speaks alone."""
    labels, metric = bench.task.labels, bench.task.metric
    if not labels:
        return [Made(direct=_silent) for _ in people]
    return [
        Made(
            direct=Guessed(_prior(bench, person), bench.rates, labels, metric),
            bytes=COUNT_BYTES * len({output.strip() for output in person.outputs}.intersection(labels)),
        )
        for person in people
    ]


def _prior(bench: Bench, person: Person) -> Prior:
    from mta_cli.engine.memory.knn import STRENGTH

    if bench.items is not None:
        return guess(bench, person)
    return Habit(habit(person.outputs, bench.task.labels, bench.rates, STRENGTH))


def _silent(text: str) -> tuple[str, tuple[float, ...]]:
    return "", ()


METHODS = (
    Method(
        "neighbours",
        "the person's label habit and what others answered to the like; no model",
        make,
        below="base",
        version=2,
    ),
)
