"""Answers from what others answered to the like and from a person's own habit, without a language model.

What any model has to beat where many people answer the like questions; classic collaborative filtering.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mta_cli.engine.memory.label_prior import FrequencyLabelPrior, LabelPrior, decide_label, user_label_prior
from mta_cli.engine.methods.label_priors import COUNT_BYTES, neighbour_label_prior
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots


@dataclass(frozen=True)
class NeighbourAnswer:
    """The label that is likeliest, or for scores the median, by people's rates and a prior."""

    prior: LabelPrior
    rates: tuple[float, ...]
    labels: tuple[str, ...]
    metric: str

    def __call__(self, text: str) -> tuple[str, tuple[float, ...]]:
        """See `Direct`."""
        scores = tuple(math.log(rate) + extra for rate, extra in zip(self.rates, self.prior(text), strict=True))
        return self.labels[decide_label(scores, self.labels, self.metric)], scores


def build_neighbour_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A rule for each person; for a task of texts it has nothing to say. Without neighbours the habit speaks alone."""
    labels, metric = bench.task.labels, bench.task.metric
    if not labels:
        return [UserModel(answerer=_empty_answer) for _ in people]
    return [
        UserModel(
            answerer=NeighbourAnswer(_prior(bench, person), bench.rates, labels, metric),
            bytes=COUNT_BYTES * len({output.strip() for output in person.outputs}.intersection(labels)),
        )
        for person in people
    ]


def _prior(bench: MethodContext, person: UserShots) -> LabelPrior:
    from mta_cli.engine.memory.knn import PRIOR_STRENGTH

    if bench.neighbour_index is not None:
        return neighbour_label_prior(bench, person)
    return FrequencyLabelPrior(user_label_prior(person.outputs, bench.task.labels, bench.rates, PRIOR_STRENGTH))


def _empty_answer(text: str) -> tuple[str, tuple[float, ...]]:
    return "", ()


METHODS = (
    Method(
        "neighbours",
        "the person's label habit and what others answered to the like; no model",
        build_neighbour_models,
        base_level="base",
        version=2,
    ),
)
