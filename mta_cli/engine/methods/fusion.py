"""Merged anchors without anything trained: which anchors, and how much of each. All merging is exact (in ΔW)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import evidence_weights, merge_loras, similarity_weights
from mta_cli.engine.methods.controls import noise_like
from mta_cli.engine.methods.label_priors import NEIGHBOUR_SETTINGS, NO_PRIOR_SETTINGS, label_priors, shot_examples
from mta_cli.engine.methods.method import Method, MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.scoring.label_examples import TrainingExample, build_prompt_tree, example_log_likelihood
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, prune_examples
from mta_cli.engine.training.fusion_weights import learn_weights

MIN_ANCHOR_WEIGHT = 0.001  # of an anchor in a recipe: evidence leaves most of them next to nothing
SHARE_BYTES = 12  # an anchor's number, similarity and weight in a recipe

AnchorWeights = list[tuple[int, float]]  # anchors by place in the bank, and their weights
WeighAnchors = Callable[[MethodContext, Sequence[UserShots], Settings], list[AnchorWeights]]
COSINE_SETTINGS = {"top_k": 2, **NO_PRIOR_SETTINGS}
EVIDENCE_SETTINGS = {"top_k": 4, "sharpness": 0.5, "scale": 0.5, **NO_PRIOR_SETTINGS}
LEARNED_SETTINGS = {**EVIDENCE_SETTINGS, "learn_steps": 20, "learn_rate": 0.02, "pull": 1.0}
EVIDENCE_GRID = tuple(
    {"sharpness": sharpness, "scale": scale} for sharpness in (0.25, 0.5, 1.0) for scale in (0.25, 0.5, 1.0)
)
LEARNED_GRID = tuple({"learn_rate": rate, "pull": pull} for rate in (0.02, 0.05) for pull in (0.3, 1.0, 3.0))


def weigh_by_similarity(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[AnchorWeights]:
    """The `top_k` nearest anchors by cosine, each with its share of their similarity (the paper)."""
    found = []
    for person in people:
        cosines = (bench.profiles @ person.profile).tolist() if person.outputs and len(bench.profiles) else []
        best = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[: int(settings["top_k"])]
        found.append(list(zip(best, similarity_weights([cosines[i] for i in best]), strict=True)) if best else [])
    return found


def weigh_at_random(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[AnchorWeights]:
    """`top_k` anchors drawn for each person, with equal weights."""
    found = []
    for person in people:
        draw = random.Random(f"{bench.seed} {person.number}")
        chosen = draw.sample(range(len(bench.anchors)), min(int(settings["top_k"]), len(bench.anchors)))
        found.append([(i, 1.0 / len(chosen)) for i in chosen])
    return found


def weigh_by_evidence(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[AnchorWeights]:
    """The `top_k` anchors under which the shots are likeliest, each with `scale` times its posterior share.

    Shares are the softmax of `sharpness` × the shots' summed log-likelihood, beside what is known of each shot already
    (see `taught`); the task adapter alone is a candidate too.
    Less than all of them is taken because anchors fit the people they were trained on closer than anybody else.
    """
    found = []
    for person, sums in zip(people, shot_log_likelihoods(bench, people, settings), strict=True):
        null, logliks = sums[0], sums[1:]
        best = sorted(range(len(logliks)), key=lambda i: (-logliks[i], i))[: int(settings["top_k"])]
        weights, _ = evidence_weights([logliks[i] for i in best], null, float(settings["sharpness"]))
        scaled = [(i, float(settings["scale"]) * weight) for i, weight in zip(best, weights, strict=True)]
        shares = [(i, weight) for i, weight in scaled if weight >= MIN_ANCHOR_WEIGHT]
        found.append(shares if person.rows else [])
    return found


def shot_log_likelihoods(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[list[float]]:
    """The summed log-likelihood (nats) of each person's shots without an anchor, then under each of them."""
    key = ("likelihoods", tuple(person.number for person in people), settings.get("neighbour_weight", 0.0))
    if key not in bench.cache:
        bench.cache[key] = _sum_shot_log_likelihoods(
            bench, [shot_examples(bench, person, settings) for person in people]
        )
    known: list[list[float]] = bench.cache[key]
    return known


def _sum_shot_log_likelihoods(bench: MethodContext, whole: Sequence[Sequence[TrainingExample]]) -> list[list[float]]:
    lessons = prune_examples(bench.base, [(own, ()) for own in whole], [one.placement for one in bench.anchors])
    forks = [build_prompt_tree(one) for own in lessons for one in own]
    candidates: list[tuple[LoraWeights, ...]] = [(), *((anchor,) for anchor in bench.anchors)]
    asked = [(fork, i) for fork in range(len(forks)) for i in range(len(candidates))]
    values = iter(completion_log_likelihoods(bench.base, forks, candidates, asked))
    found = []
    for own in lessons:
        sums = [0.0] * len(candidates)
        for one in own:
            for i in range(len(candidates)):
                sums[i] += example_log_likelihood(one, next(values))
        found.append(sums)
    return found


def weigh_by_gradient(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[AnchorWeights]:
    """The evidence's anchors, their weights fitted to the shots and pulled to the evidence's."""
    found = []
    for person, shares in zip(people, weigh_by_evidence(bench, people, settings), strict=True):
        if not shares:
            found.append(shares)
            continue
        weights = learn_weights(
            bench.base,
            [bench.anchors[i] for i, _ in shares],
            [weight for _, weight in shares],
            person.rows,
            steps=int(settings["learn_steps"]),
            learning_rate=float(settings["learn_rate"]),
            pull=float(settings["pull"]),
        )
        found.append([(i, weight) for (i, _), weight in zip(shares, weights, strict=True)])
    return found


def merge_anchors(bench: MethodContext, shares: AnchorWeights) -> tuple[LoraWeights, ...]:
    """The merged anchors of `shares`; nothing where there are none."""
    merged = merge_loras([(bench.anchors[i], weight) for i, weight in shares])
    return () if merged is None else (merged,)


def build_fusion_models(
    weigh: WeighAnchors, bench: MethodContext, people: Sequence[UserShots], settings: Settings
) -> list[UserModel]:
    """A fusion for each person, and their label prior where the settings give it weight."""
    recipes, leanings = weigh(bench, people, settings), label_priors(bench, people, settings)
    return [
        UserModel(merge_anchors(bench, shares), prior, SHARE_BYTES * len(shares) + size)
        for shares, (prior, size) in zip(recipes, leanings, strict=True)
    ]


def build_noise_models(bench: MethodContext, people: Sequence[UserShots], settings: Settings) -> list[UserModel]:
    """The nearest anchors' shares, of random weights as large as the anchors' own."""
    anchors = [noise_like(anchor, bench.seed + i) for i, anchor in enumerate(bench.anchors)]
    return build_fusion_models(weigh_by_similarity, _replace_anchors(bench, anchors), people, settings)


def _replace_anchors(bench: MethodContext, anchors: Sequence[LoraWeights]) -> MethodContext:
    return replace(bench, anchors=anchors, cache={})


METHODS = (
    Method(
        "fusion",
        "the two nearest anchors merged, no gradient",
        partial(build_fusion_models, weigh_by_similarity),
        settings=COSINE_SETTINGS,
    ),
    Method(
        "fusion-random",
        "two random anchors merged",
        partial(build_fusion_models, weigh_at_random),
        settings=COSINE_SETTINGS,
    ),
    Method(
        "fusion-noise",
        "as fusion, from random weights of the anchors' norms",
        build_noise_models,
        settings=COSINE_SETTINGS,
    ),
    Method(
        "fusion-evidence",
        "anchors by the likelihood of the shots, merged, no gradient",
        partial(build_fusion_models, weigh_by_evidence),
        settings=EVIDENCE_SETTINGS,
        grid=EVIDENCE_GRID,
    ),
    Method(
        "mta-recipe",
        "the same with label habit and neighbours: Merge-then-Adapt without a gradient",
        partial(build_fusion_models, weigh_by_evidence),
        settings={**EVIDENCE_SETTINGS, **NEIGHBOUR_SETTINGS},
        grid=EVIDENCE_GRID,
        version=8,
    ),
    Method(
        "fusion-learned",
        "the same, weights fitted by gradient",
        partial(build_fusion_models, weigh_by_gradient),
        settings=LEARNED_SETTINGS,
        grid=LEARNED_GRID,
    ),
)
