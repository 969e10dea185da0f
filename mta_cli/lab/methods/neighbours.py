"""The `neighbours` method: answers from label memory alone, without a language model, as a baseline.

It is collaborative filtering, for tasks where many users answer similar questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mta_cli.engine.memory.label_prior import LabelPrior, add_label_prior, decide_label
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.options import MemoryOptions


@dataclass(frozen=True)
class NeighbourAnswer:
    """Answers the likeliest label, or for scores the median, by the sum of `prior` and `log_rates` [labels], nats."""

    prior: LabelPrior
    log_rates: tuple[float, ...]
    labels: tuple[str, ...]
    metric: str

    def __call__(self, text: str, time: str | None = None) -> tuple[str, tuple[float, ...]]:
        """See `DirectAnswerer`."""
        scores = add_label_prior(self.log_rates, self.prior, text, time)
        return self.labels[decide_label(scores, self.labels, self.metric)], scores


def build_neighbour_models(context: MethodContext, users: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A model for each user. In a task of texts its answers are empty.

    If the bank has no neighbours, only the user's label prior is used.
    """
    from mta_cli.engine.memory.knn import MixtureWeights

    memory, task = context.memory, context.task
    if not task.labels:
        return [UserModel(answerer=_empty_answer) for _ in users]
    log_rates = tuple(math.log(rate) for rate in memory.rates)
    look_ahead, no_model = bool(settings["look_ahead"]), MixtureWeights.from_parts(0.0, 1.0)
    alone = MemoryOptions("habit", prior_weight=1.0)
    models = []
    for user in users:
        prior: LabelPrior | None
        if memory.neighbours is not None:
            # replaces the bank's rates by the rates of items up to the question
            prior = memory.neighbour_prior(user.answers, look_ahead=look_ahead).beside_model(no_model)
        else:
            prior = memory.prior_of(user.answers, alone)
        assert prior is not None, "a task of labels has rates"
        answerer = NeighbourAnswer(prior, log_rates, task.labels, task.metric)
        models.append(UserModel(answerer=answerer, bytes=memory.stored_bytes(user.answers)))
    return models


def _empty_answer(text: str, time: str | None = None) -> tuple[str, tuple[float, ...]]:
    return "", ()


METHOD = Method(
    "neighbours",
    "label memory alone: what other users answered to similar inputs, and the user's label prior; no model",
    below="base",
    memory=None,
    overrides={"look_ahead": False},
    version=4,
    build=build_neighbour_models,
)
