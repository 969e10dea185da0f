"""Without anything trained for a person: the base and the task adapter, with and without their own items shown."""

from __future__ import annotations

from collections.abc import Sequence

from mta_cli.engine.methods.label_priors import NEIGHBOUR_SETTINGS, PRIOR_SETTINGS, label_priors
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots


def build_shared_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """Everybody has the same model; nothing is kept for anybody."""
    return [UserModel() for _ in people]


def build_prior_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """The shared model and each person's own label prior."""
    return [UserModel(prior=prior, bytes=size) for prior, size in label_priors(bench, people, settings)]


METHODS = (
    Method("base", "the base alone", build_shared_models, base_level="base", shows_history=False),
    Method("rag", "the base, with the person's own items in the prompt", build_shared_models, base_level="base"),
    Method("pooled", "the task adapter alone", build_shared_models, shows_history=False),
    Method("pooled-rag", "the task adapter, with the person's own items in the prompt", build_shared_models),
    Method(
        "pooled-prior",
        "pooled-rag and the person's label habit",
        build_prior_models,
        settings={**PRIOR_SETTINGS, "prior_weight": 0.5},
        grid=tuple({"prior_strength": s, "prior_weight": w} for s in (2.0, 8.0) for w in (0.25, 0.5, 1.0)),
    ),
    Method(
        "pooled-neighbours",
        "pooled-rag, the person's label habit and what others answered to the like",
        build_prior_models,
        settings={**NEIGHBOUR_SETTINGS, "prior_weight": 0.5},
        grid=tuple({"neighbour_weight": weight} for weight in (0.85, 1.7, 3.4)),
        version=4,
    ),
)
