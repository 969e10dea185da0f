"""Merge-then-Adapt: a person's own stack above their fusion, and the control without a fusion."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mta_cli.engine.methods.fusion import (
    COSINE_SETTINGS,
    EVIDENCE_SETTINGS,
    LEARNED_GRID,
    LEARNED_SETTINGS,
    SHARE_BYTES,
    AnchorWeights,
    WeighAnchors,
    merge_anchors,
    weigh_by_evidence,
    weigh_by_gradient,
    weigh_by_similarity,
)
from mta_cli.engine.methods.label_priors import NEIGHBOUR_SETTINGS, NO_PRIOR_SETTINGS, PRIOR_SETTINGS, label_priors
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import (
    AUTO_LEARNING_RATE,
    CORE_SETTINGS,
    LORA_GRID,
    LORA_SETTINGS,
    FitStacks,
    fit_cores,
    fit_loras,
)

MTA_CORE_SETTINGS: Settings = {**CORE_SETTINGS, "learning_rate": AUTO_LEARNING_RATE}
CORE_PRIOR_GRID = tuple(
    {"learning_rate": rate, "prior_weight": weight} for rate in (0.03, 0.1, 0.2) for weight in (0.25, 0.5)
)
CORE_NEIGHBOUR_GRID = tuple(
    {"learning_rate": rate, "neighbour_weight": weight} for rate in (0.03, 0.1) for weight in (0.85, 1.7, 3.4)
)
LORA_PRIOR_GRID = tuple(
    {"scale": scale, "prior_weight": weight} for scale in (0.25, 0.5, 1.0) for weight in (0.0, 0.25, 0.5)
)


def weigh_no_anchors(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[AnchorWeights]:
    """No anchors for anybody."""
    return [[] for _ in people]


def build_stack_models(
    weigh: WeighAnchors, fit: FitStacks, bench: MethodContext, people: Sequence[UserShots], settings: Settings
) -> list[UserModel]:
    """Fusion, stack and, where the settings give it weight, label prior of each person."""
    recipes = weigh(bench, people, settings)
    under = [merge_anchors(bench, shares) for shares in recipes]
    stacks = fit(bench, people, under, settings)
    leanings = label_priors(bench, people, settings)
    return [
        UserModel((*fusion, *own.loras), prior, SHARE_BYTES * len(shares) + own.bytes + size, failed=own.failed)
        for shares, fusion, own, (prior, size) in zip(recipes, under, stacks, leanings, strict=True)
    ]


METHODS = (
    Method(
        "stack",
        "a LoRA above the task adapter, no fusion",
        partial(build_stack_models, weigh_no_anchors, fit_loras),
        settings={**LORA_SETTINGS, **NO_PRIOR_SETTINGS},
        grid=LORA_GRID,
    ),
    Method(
        "mta",
        "Merge-then-Adapt: fusion by evidence, a core above it, label habit and neighbours",
        partial(build_stack_models, weigh_by_evidence, fit_cores),
        settings={**MTA_CORE_SETTINGS, **EVIDENCE_SETTINGS, **NEIGHBOUR_SETTINGS},
        grid=CORE_NEIGHBOUR_GRID,
        version=9,
    ),
    Method(
        "mta-alone",
        "the same without neighbours: a share of the label habit",
        partial(build_stack_models, weigh_by_evidence, fit_cores),
        settings={**MTA_CORE_SETTINGS, **EVIDENCE_SETTINGS, **PRIOR_SETTINGS},
        grid=CORE_PRIOR_GRID,
        version=2,
    ),
    Method(
        "mta-lora",
        "that with a LoRA of the person's own instead of the core",
        partial(build_stack_models, weigh_by_evidence, fit_loras),
        settings={**EVIDENCE_SETTINGS, **LORA_SETTINGS, **PRIOR_SETTINGS},
        grid=LORA_PRIOR_GRID,
    ),
    Method(
        "mta-cosine",
        "the paper's choice of anchors, merged exactly, and a LoRA",
        partial(build_stack_models, weigh_by_similarity, fit_loras),
        settings={**COSINE_SETTINGS, **LORA_SETTINGS},
        grid=LORA_GRID,
    ),
    Method(
        "mta-evidence",
        "fusion by evidence and a LoRA",
        partial(build_stack_models, weigh_by_evidence, fit_loras),
        settings={**EVIDENCE_SETTINGS, **LORA_SETTINGS},
        grid=LORA_GRID,
    ),
    Method(
        "mta-learned",
        "learned fusion weights and a LoRA",
        partial(build_stack_models, weigh_by_gradient, fit_loras),
        settings={**LEARNED_SETTINGS, **LORA_SETTINGS},
        grid=LEARNED_GRID,
    ),
)
