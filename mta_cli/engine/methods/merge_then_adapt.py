"""Merge-then-Adapt: a person's own stack above their fusion, and the control without a fusion."""

from __future__ import annotations

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
from mta_cli.engine.methods.label_priors import NEIGHBOURS, NO_PRIOR, PRIOR, priors
from mta_cli.engine.methods.method import Bench, Made, Method, Person, Settings
from mta_cli.engine.methods.stacks import BY_TASK, CORES, LORA_GRID, OWN, Fit, cores, loras

CORE: Settings = {**CORES, "learning_rate": BY_TASK}
CORES_WEIGHED = tuple(
    {"learning_rate": rate, "prior_weight": weight} for rate in (0.03, 0.1, 0.2) for weight in (0.25, 0.5)
)
CORES_GUESSED = tuple(
    {"learning_rate": rate, "neighbour_weight": weight} for rate in (0.03, 0.1) for weight in (0.85, 1.7, 3.4)
)
WEIGHED = tuple({"scale": scale, "prior_weight": weight} for scale in (0.25, 0.5, 1.0) for weight in (0.0, 0.25, 0.5))


def nobody(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Shares]:
    """No anchors for anybody."""
    return [[] for _ in people]


def made(weigh: Weigh, fit: Fit, bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """Fusion, stack and, where the settings give it weight, label prior of each person."""
    recipes = weigh(bench, people, settings)
    under = [fused(bench, shares) for shares in recipes]
    stacks = fit(bench, people, under, settings)
    leanings = priors(bench, people, settings)
    return [
        Made((*fusion, *own.parts), prior, SHARE_BYTES * len(shares) + own.bytes + size, failed=own.failed)
        for shares, fusion, own, (prior, size) in zip(recipes, under, stacks, leanings, strict=True)
    ]


METHODS = (
    Method(
        "stack",
        "a LoRA above the task adapter, no fusion",
        partial(made, nobody, loras),
        settings={**OWN, **NO_PRIOR},
        grid=LORA_GRID,
    ),
    Method(
        "mta",
        "Merge-then-Adapt: fusion by evidence, a core above it, label habit and neighbours",
        partial(made, by_evidence, cores),
        settings={**CORE, **EVIDENCE, **NEIGHBOURS},
        grid=CORES_GUESSED,
        version=9,
    ),
    Method(
        "mta-alone",
        "the same without neighbours: a share of the label habit",
        partial(made, by_evidence, cores),
        settings={**CORE, **EVIDENCE, **PRIOR},
        grid=CORES_WEIGHED,
        version=2,
    ),
    Method(
        "mta-lora",
        "that with a LoRA of the person's own instead of the core",
        partial(made, by_evidence, loras),
        settings={**EVIDENCE, **OWN, **PRIOR},
        grid=WEIGHED,
    ),
    Method(
        "mta-cosine",
        "the paper's choice of anchors, merged exactly, and a LoRA",
        partial(made, by_similarity, loras),
        settings={**COSINE, **OWN},
        grid=LORA_GRID,
    ),
    Method(
        "mta-evidence",
        "fusion by evidence and a LoRA",
        partial(made, by_evidence, loras),
        settings={**EVIDENCE, **OWN},
        grid=LORA_GRID,
    ),
    Method(
        "mta-learned",
        "learned fusion weights and a LoRA",
        partial(made, learned, loras),
        settings={**LEARNED, **OWN},
        grid=LEARNING,
    ),
)
