"""Merge-then-Adapt: a person's own stack above their fusion, and the control without a fusion."""

from collections.abc import Sequence
from functools import partial

from mta_cli.engine.methods.fusion import (
    COSINE,
    EVIDENCE,
    LEARNED,
    LEARNING,
    SHARE_BYTES,
    Shares,
    Weigh,
    by_evidence,
    by_similarity,
    fused,
    learned,
)
from mta_cli.engine.methods.prior import NO_PRIOR, PRIOR, habits
from mta_cli.engine.methods.shape import Bench, Made, Method, Person, Settings
from mta_cli.engine.methods.stacks import OWN, lost, stack_bytes, stacks_as

WEIGHED = tuple({"scale": scale, "prior_weight": weight} for scale in (0.25, 0.5, 1.0) for weight in (0.0, 0.25, 0.5))
STACKS = tuple({"steps": steps, "learning_rate": rate} for steps, rate in ((10, 1e-3), (10, 2e-3), (10, 5e-3)))


def nobody(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Shares]:
    """No anchors for anybody."""
    return [[] for _ in people]


def made(weigh: Weigh, bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Fusion, stack and, where the settings give it weight, label prior of each person."""
    recipes = weigh(bench, people, settings)
    under = [fused(bench, shares) for shares in recipes]
    stacks = stacks_as(bench, people, under, settings)
    priors = habits(bench, people, settings)
    return [
        Made(
            (*fusion, stack) if stack is not None else fusion, prior,
            SHARE_BYTES * len(shares) + stack_bytes(stack) + size,
            failed=lost(person, stack),
        )
        for person, shares, fusion, stack, (prior, size) in zip(people, recipes, under, stacks, priors, strict=True)
    ]  # fmt: skip


METHODS = (
    Method(
        "stack", "a stack above the task adapter, no fusion", partial(made, nobody),
        settings={**OWN, **NO_PRIOR}, grid=STACKS,
    ),
    Method(
        "mta", "Merge-then-Adapt as it is by default: fusion by evidence, stack, label prior",
        partial(made, by_evidence), settings={**EVIDENCE, **OWN, **PRIOR}, grid=WEIGHED,
    ),
    Method(
        "mta-cosine", "the paper's choice of anchors, merged exactly, and a stack", partial(made, by_similarity),
        settings={**COSINE, **OWN}, grid=STACKS,
    ),
    Method(
        "mta-evidence", "fusion by evidence and a stack", partial(made, by_evidence),
        settings={**EVIDENCE, **OWN}, grid=STACKS,
    ),
    Method(
        "mta-learned", "learned fusion weights and a stack", partial(made, learned),
        settings={**LEARNED, **OWN}, grid=LEARNING,
    ),
)  # fmt: skip
