"""Without anything trained for a person: the base and the task adapter, with and without their own items shown."""

from __future__ import annotations

from collections.abc import Sequence

from mta_cli.engine.methods.label_priors import NEIGHBOURS, PRIOR, priors
from mta_cli.engine.methods.method import Bench, Made, Method, Person, Settings


def nothing(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Everybody has the same model; nothing is kept for anybody."""
    return [Made() for _ in people]


def with_priors(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """The shared model and each person's own label prior."""
    return [Made(prior=prior, bytes=size) for prior, size in priors(bench, people, settings)]


METHODS = (
    Method("base", "the base alone", nothing, below="base", history=False),
    Method("rag", "the base, with the person's own items in the prompt", nothing, below="base"),
    Method("pooled", "the task adapter alone", nothing, history=False),
    Method("pooled-rag", "the task adapter, with the person's own items in the prompt", nothing),
    Method(
        "pooled-prior",
        "pooled-rag and the person's label habit",
        with_priors,
        settings={**PRIOR, "prior_weight": 0.5},
        grid=tuple({"prior_strength": s, "prior_weight": w} for s in (2.0, 8.0) for w in (0.25, 0.5, 1.0)),
    ),
    Method(
        "pooled-neighbours",
        "pooled-rag, the person's label habit and what others answered to the like",
        with_priors,
        settings={**NEIGHBOURS, "prior_weight": 0.5},
        grid=tuple({"neighbour_weight": weight} for weight in (0.85, 1.7, 3.4)),
        version=4,
    ),
)
