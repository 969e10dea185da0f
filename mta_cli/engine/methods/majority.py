"""Baselines from the user's shots alone, without a language model."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mta_cli.engine.evaluation.ladder import NO_MODEL
from mta_cli.engine.evaluation.metrics import rouge_1
from mta_cli.engine.memory.label_prior import PRIOR_STRENGTH, RatesUntil, user_label_prior
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.text.labels import find_label
from mta_cli.engine.text.tasks import Task


@dataclass(frozen=True)
class MajorityAnswer:
    """Answers with the user's most frequent label. Ties go to the label that is more common in the bank.

    For a task of scores, the answer is `summarise` of all scores that the user gave. The log-likelihoods are the logs
    of the user's label rates, smoothed by the population's rates up to the query's time.
    """

    task: Task
    outputs: tuple[str, ...]
    rates_until: RatesUntil
    summarise: Callable[[Sequence[float]], float]

    def __call__(self, text: str, time: str | None = None) -> tuple[str, tuple[float, ...]]:
        """See `DirectAnswerer`."""
        labels = self.task.labels
        # without a bank, other users' rates are unknown
        rates = self.rates_until(time) or (1 / len(labels),) * len(labels)
        prior = user_label_prior(self.outputs, labels, rates, PRIOR_STRENGTH)
        logliks = tuple(value + math.log(rate) for value, rate in zip(prior, rates, strict=True))
        known = [labels[place] for output in self.outputs if (place := find_label(output, labels)) is not None]
        if self.task.kind == "score" and known:
            return f"{self.summarise([float(score) for score in known]):.6g}", logliks
        counts = Counter(known)
        best = max(range(len(labels)), key=lambda i: (counts[labels[i]], rates[i], -i))
        return labels[best], logliks


@dataclass(frozen=True)
class NearestShotAnswer:
    """Answers with the output of the shot whose input is most similar to the query by ROUGE-1. Ties go to the later
    shot.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, text: str, time: str | None = None) -> tuple[str, tuple[float, ...]]:
        """See `DirectAnswerer`."""
        if not self.outputs:
            return "", ()
        nearness = [(rouge_1(shot, text), i) for i, shot in enumerate(self.inputs)]
        return self.outputs[max(nearness)[1]], ()


def build_majority_models(context: MethodContext, users: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A model for each user: the most frequent label, the median score or the nearest shot. Its stored size is 0."""
    return _build_models(context, users, statistics.median)


def build_mean_models(context: MethodContext, users: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """Like `build_majority_models`, but for scores the answer is the mean of the user's scores, rounded half up."""
    return _build_models(context, users, lambda scores: math.floor(statistics.fmean(scores) + 0.5))


def _build_models(
    context: MethodContext, users: Sequence[UserShots], summarise: Callable[[Sequence[float]], float]
) -> list[UserModel]:
    task, rates_until = context.task, context.memory.rates_until
    answerers = [simplest_answerer(task, rates_until, user.inputs, user.outputs, summarise) for user in users]
    return [UserModel(answerer=answerer) for answerer in answerers]


def simplest_answerer(
    task: Task,
    rates_until: RatesUntil,
    inputs: Sequence[str],
    outputs: Sequence[str],
    summarise: Callable[[Sequence[float]], float] = statistics.median,
) -> MajorityAnswer | NearestShotAnswer:
    """An answerer from these items of a user: majority for a task of labels or scores, else the nearest shot."""
    if not task.labels:
        return NearestShotAnswer(tuple(inputs), tuple(outputs))
    return MajorityAnswer(task, tuple(outputs), rates_until, summarise)


METHOD = Method(
    "majority",
    "the user's most frequent label, median score, or nearest own text; no model",
    below="base",
    memory=None,
    build=build_majority_models,
    version=4,
    step=NO_MODEL,
)
MEAN_METHOD = replace(
    METHOD,
    name="majority-mean",
    step="",
    about="the user's mean score, rounded; the same as majority for labels and texts",
    build=build_mean_models,
    version=3,
)
FINAL_ANSWERS = frozenset({METHOD.name, MEAN_METHOD.name})
"""Methods whose answers are final. For other methods, the answer is chosen from calibrated label likelihoods."""
