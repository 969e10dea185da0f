"""Merged anchors without anything trained: which anchors, and how much of each. All merging is exact (in ΔW)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import evidence_weights, merge, similarity_weights
from mta_cli.engine.methods.controls import noise_like
from mta_cli.engine.methods.label_priors import NEIGHBOURS, NO_PRIOR, priors, taught
from mta_cli.engine.methods.method import Bench, Made, Method, Person, Settings
from mta_cli.engine.scoring.label_examples import Taught, fork_of, log_likelihood
from mta_cli.engine.scoring.log_likelihood import abridged, likelihoods
from mta_cli.engine.training.fusion_weights import learn_weights

LEAST_SHARE = 0.001  # of an anchor in a recipe: evidence leaves most of them next to nothing
SHARE_BYTES = 12  # an anchor's number, similarity and weight in a recipe

Shares = list[tuple[int, float]]  # anchors by place in the bank, and their weights
Weigh = Callable[[Bench, Sequence[Person], Settings], list[Shares]]
COSINE = {"top_k": 2, **NO_PRIOR}
EVIDENCE = {"top_k": 4, "sharpness": 0.5, "scale": 0.5, **NO_PRIOR}
LEARNED = {**EVIDENCE, "learn_steps": 20, "learn_rate": 0.02, "pull": 1.0}
SHARPER = tuple(
    {"sharpness": sharpness, "scale": scale} for sharpness in (0.25, 0.5, 1.0) for scale in (0.25, 0.5, 1.0)
)
LEARNING = tuple({"learn_rate": rate, "pull": pull} for rate in (0.02, 0.05) for pull in (0.3, 1.0, 3.0))


def by_similarity(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Shares]:
    """The `top_k` nearest anchors by cosine, each with its share of their similarity (the paper)."""
    found = []
    for person in people:
        cosines = (bench.profiles @ person.profile).tolist() if person.outputs and len(bench.profiles) else []
        best = sorted(range(len(cosines)), key=lambda i: (-cosines[i], i))[: int(settings["top_k"])]
        found.append(list(zip(best, similarity_weights([cosines[i] for i in best]), strict=True)) if best else [])
    return found


def at_random(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Shares]:
    """`top_k` anchors drawn for each person, with equal weights."""
    found = []
    for person in people:
        draw = random.Random(f"{bench.seed} {person.number}")
        chosen = draw.sample(range(len(bench.anchors)), min(int(settings["top_k"]), len(bench.anchors)))
        found.append([(i, 1.0 / len(chosen)) for i in chosen])
    return found


def by_evidence(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Shares]:
    """The `top_k` anchors under which the shots are likeliest, each with `scale` times its posterior share.

    Shares are the softmax of `sharpness` × the shots' summed log-likelihood, beside what is known of each shot already
    (see `taught`); the task adapter alone is a candidate too.
    Less than all of them is taken because anchors fit the people they were trained on closer than anybody else.
    """
    found = []
    for person, sums in zip(people, likelihoods_of(bench, people, settings), strict=True):
        null, logliks = sums[0], sums[1:]
        best = sorted(range(len(logliks)), key=lambda i: (-logliks[i], i))[: int(settings["top_k"])]
        weights, _ = evidence_weights([logliks[i] for i in best], null, float(settings["sharpness"]))
        scaled = [(i, float(settings["scale"]) * weight) for i, weight in zip(best, weights, strict=True)]
        shares = [(i, weight) for i, weight in scaled if weight >= LEAST_SHARE]
        found.append(shares if person.rows else [])
    return found


def likelihoods_of(bench: Bench, people: Sequence[Person], settings: Settings) -> list[list[float]]:
    """The summed log-likelihood (nats) of each person's shots without an anchor, then under each of them."""
    key = ("likelihoods", tuple(person.number for person in people), settings.get("neighbour_weight", 0.0))
    if key not in bench.known:
        bench.known[key] = _weighed(bench, [taught(bench, person, settings) for person in people])
    known: list[list[float]] = bench.known[key]
    return known


def _weighed(bench: Bench, whole: Sequence[Sequence[Taught]]) -> list[list[float]]:
    lessons = abridged(bench.base, [(own, ()) for own in whole], [one.placement for one in bench.anchors])
    forks = [fork_of(one) for own in lessons for one in own]
    candidates: list[tuple[LoraWeights, ...]] = [(), *((anchor,) for anchor in bench.anchors)]
    asked = [(fork, i) for fork in range(len(forks)) for i in range(len(candidates))]
    values = iter(likelihoods(bench.base, forks, candidates, asked))
    found = []
    for own in lessons:
        sums = [0.0] * len(candidates)
        for one in own:
            for i in range(len(candidates)):
                sums[i] += log_likelihood(one, next(values))
        found.append(sums)
    return found


def learned(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Shares]:
    """The evidence's anchors, their weights fitted to the shots and pulled to the evidence's."""
    found = []
    for person, shares in zip(people, by_evidence(bench, people, settings), strict=True):
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


def fused(bench: Bench, shares: Shares) -> tuple[LoraWeights, ...]:
    """The merged anchors of `shares`; nothing where there are none."""
    merged = merge([(bench.anchors[i], weight) for i, weight in shares])
    return () if merged is None else (merged,)


def made(weigh: Weigh, bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """A fusion for each person, and their label prior where the settings give it weight."""
    recipes, leanings = weigh(bench, people, settings), priors(bench, people, settings)
    return [
        Made(fused(bench, shares), prior, SHARE_BYTES * len(shares) + size)
        for shares, (prior, size) in zip(recipes, leanings, strict=True)
    ]


def noise(bench: Bench, people: Sequence[Person], settings: Settings) -> list[Made]:
    """The nearest anchors' shares, of random weights as large as the anchors' own."""
    anchors = [noise_like(anchor, bench.seed + i) for i, anchor in enumerate(bench.anchors)]
    return made(by_similarity, _with(bench, anchors), people, settings)


def _with(bench: Bench, anchors: Sequence[LoraWeights]) -> Bench:
    return replace(bench, anchors=anchors, known={})


METHODS = (
    Method("fusion", "the two nearest anchors merged, no gradient", partial(made, by_similarity), settings=COSINE),
    Method("fusion-random", "two random anchors merged", partial(made, at_random), settings=COSINE),
    Method("fusion-noise", "as fusion, from random weights of the anchors' norms", noise, settings=COSINE),
    Method(
        "fusion-evidence",
        "anchors by the likelihood of the shots, merged, no gradient",
        partial(made, by_evidence),
        settings=EVIDENCE,
        grid=SHARPER,
    ),
    Method(
        "mta-recipe",
        "the same with label habit and neighbours: Merge-then-Adapt without a gradient",
        partial(made, by_evidence),
        settings={**EVIDENCE, **NEIGHBOURS},
        grid=SHARPER,
        version=8,
    ),
    Method(
        "fusion-learned",
        "the same, weights fitted by gradient",
        partial(made, learned),
        settings=LEARNED,
        grid=LEARNING,
    ),
)
