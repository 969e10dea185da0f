"""Answers from a person's shots alone, without a language model: what any model has to beat."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mta_cli.engine.evaluation.metrics import rouge_1
from mta_cli.engine.memory.label_prior import user_label_prior
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots

SHOT_PRIOR_STRENGTH = 1.0  # how many shots the population's rates count as


@dataclass(frozen=True)
class MajorityAnswer:
    """The label that the person gave most often, the commoner among people of equals; or their mean score."""

    answer: str
    logliks: tuple[float, ...]

    def __call__(self, text: str) -> tuple[str, tuple[float, ...]]:
        """See `Direct`."""
        return self.answer, self.logliks


@dataclass(frozen=True)
class NearestShotAnswer:
    """The output of the shot whose input shares most words with the query (ROUGE-1), the later of equals."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, text: str) -> tuple[str, tuple[float, ...]]:
        """See `Direct`."""
        if not self.outputs:
            return "", ()
        nearness = [(rouge_1(own, text).f1, i) for i, own in enumerate(self.inputs)]
        return self.outputs[max(nearness)[1]], ()


def build_majority_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """A rule for each person; what it needs is kept with their history, so it takes no bytes of its own."""
    if not bench.task.labels:
        return [UserModel(answerer=NearestShotAnswer(person.inputs, person.outputs)) for person in people]
    return [UserModel(answerer=_majority_answer(bench, person)) for person in people]


def _majority_answer(bench: MethodContext, person: UserShots) -> MajorityAnswer:
    labels = bench.task.labels
    prior = user_label_prior(person.outputs, labels, bench.rates, SHOT_PRIOR_STRENGTH)
    logliks = tuple(value + math.log(rate) for value, rate in zip(prior, bench.rates, strict=True))
    known = [label for output in person.outputs if (label := output.strip()) in labels]
    if bench.task.kind == "score" and known:
        return MajorityAnswer(f"{sum(map(float, known)) / len(known):.6g}", logliks)
    counts = Counter(known)
    best = max(range(len(labels)), key=lambda i: (counts[labels[i]], bench.rates[i], -i))
    return MajorityAnswer(labels[best], logliks)


METHODS = (
    Method(
        "majority",
        "the person's most frequent label, mean score, or nearest own text",
        build_majority_models,
        base_level="base",
        keeps_own_answer=True,
    ),
)
