"""Stage 2, fusion: chooses the anchors of a user, weights them, and merges them.

Similarity weights are from the paper (arXiv 2511.20072). Evidence weights, from the likelihood of the user's shots, are
not in the paper, nor is their null candidate, the task adapter alone.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import average_factors, merge_loras
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.methods.shots import shot_examples
from mta_cli.engine.methods.weightings import WEIGHTINGS, evidence_weights
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.retrieval.nearest import nearest_rows
from mta_cli.engine.scoring.label_examples import TrainingExample, build_prompt_tree, example_log_likelihood
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, prune_examples
from mta_cli.engine.work import AnchorLookup, SingleReport
from mta_cli.options import SHOT_WEIGHTINGS, FuseOptions, MemoryOptions

MIN_ANCHOR_WEIGHT = 0.001  # most evidence weights are almost zero; a smaller weight is left out of a recipe
SHARE_BYTES = 12  # the size of one anchor in a recipe: number, similarity and weight, four bytes each
COSINE_TOLERANCE = 1e-6  # cosines may differ by this much between batches
# limits on the users and anchors in one batch of evidence; a batch of one user may have more anchors
MAX_USERS_PER_BATCH, MAX_ANCHORS_PER_BATCH = 16, 64


@dataclass(frozen=True)
class AnchorShare:
    """One anchor of a recipe: its index, its cosine with the user's profile, and its weight."""

    anchor: int
    similarity: float
    weight: float

    @classmethod
    def rounded(cls, anchor: int, similarity: float, weight: float) -> AnchorShare:
        """The share as a recipe stores it, with similarity and weight rounded to float32."""
        return cls(anchor, *struct.unpack("<2f", struct.pack("<2f", similarity, weight)))


Candidates = list[tuple[int, float]]  # (index, cosine) of anchors, the nearest first


@dataclass(frozen=True)
class ShotCase:
    """A user whose anchors are weighted by evidence: the shots as examples, and the candidate anchors with their
    cosines.
    """

    examples: tuple[TrainingExample, ...]
    candidates: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class EvidenceWork:
    """The computation of evidence weights for a batch of users, as work for an executor."""

    cases: tuple[ShotCase, ...]
    options: FuseOptions

    @property
    def anchors_used(self) -> Sequence[int]:
        """The indices of all candidate anchors."""
        return sorted({place for case in self.cases for place, _ in case.candidates})

    def session(self, base: LoadedBase, anchors: AnchorLookup) -> SingleReport[list[list[AnchorShare]]]:
        """The computation on `base`, into which the task adapter is merged. It reports the recipe of each case."""
        return SingleReport(lambda: self._weigh(base, anchors))

    def remaining(self, report: list[list[AnchorShare]]) -> None:
        """None, because there is only one report."""

    def _weigh(self, base: LoadedBase, anchors: AnchorLookup) -> list[list[AnchorShare]]:
        evidence = _evidence(base, anchors, self.cases)
        return [
            _evidence_shares(case.candidates, self.options, own) if case.candidates else []
            for case, own in zip(self.cases, evidence, strict=True)
        ]


def weighting_for(user: UserShots, weighting: str) -> str:
    """The weighting for this user. Without shots, a weighting that needs them falls back to similarity."""
    return "similarity" if weighting in SHOT_WEIGHTINGS and not user.rows else weighting


def nearest_anchors(context: MethodContext, user: UserShots, options: FuseOptions) -> Candidates:
    """The user's nearest anchors, nearest first: as many as the larger of `candidates` and `top_k`.

    An anchor is skipped if the user's cosine is below its minimum (`context.min_similarities`); the next nearest takes
    its place. The list is empty for a user without a profile.
    """
    if user.profile is None or not len(context.anchors):
        return []
    count = max(options.candidates, options.top_k)
    places, values = nearest_rows(context.profiles.numpy(), user.profile.numpy(), count + len(context.min_similarities))
    candidates = [
        (place, value)
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
        if value >= context.min_similarities.get(place, value) - COSINE_TOLERANCE
    ]
    return candidates[:count]


def user_batches(
    context: MethodContext, users: Sequence[UserShots], weighting: str, options: FuseOptions
) -> Iterator[list[UserShots]]:
    """Batches of users whose weights are computed together, in the order of `users`.

    A batch has at most `MAX_USERS_PER_BATCH` users. If evidence is computed, it also has at most
    `MAX_ANCHORS_PER_BATCH` different anchors; a user with more anchors has a batch of their own.
    """
    batch: list[UserShots] = []
    anchors: set[int] = set()
    for user in users:
        needed = weighting_for(user, weighting) in SHOT_WEIGHTINGS
        needed_anchors = {place for place, _ in _candidates(context, user, options)} if needed else set()
        if batch and (len(batch) == MAX_USERS_PER_BATCH or len(anchors | needed_anchors) > MAX_ANCHORS_PER_BATCH):
            yield batch
            batch, anchors = [], set()
        batch.append(user)
        anchors |= needed_anchors
    if batch:
        yield batch


def weigh_anchors(
    context: MethodContext,
    users: Sequence[UserShots],
    weighting: str,
    options: FuseOptions,
    memory: MemoryOptions,
) -> list[list[AnchorShare]]:
    """Each user's recipe: anchors and weights. It is empty for the weighting `none`, and for a user without items
    unless the weighting is `random`.

    The users of one batch (see `user_batches`) are computed together, so the last bits of a weight may depend on the
    other users of the batch.
    """
    recipes = []
    for batch in user_batches(context, users, weighting, options):
        asking = [user for user in batch if weighting_for(user, weighting) in SHOT_WEIGHTINGS]
        sums = evidence_of(context, asking, options, memory) if asking else []
        evidence = dict(zip((user.number for user in asking), sums, strict=True))
        for user in batch:
            recipes.append(_weigh(context, user, weighting_for(user, weighting), options, evidence))
    return recipes


def evidence_of(
    context: MethodContext, users: Sequence[UserShots], options: FuseOptions, memory: MemoryOptions
) -> list[dict[int | None, float]]:
    """The summed log-likelihood (nats) of each user's shots under each anchor; the key None is the task adapter alone.

    Evaluates the `candidates` nearest anchors of each user. Hidden states that no anchor changes are computed once per
    shot.
    """
    key = ("evidence", tuple((user.number, user.rows) for user in users), options.candidates, memory)
    cases = shot_cases(context, users, options, memory)
    return context.cached(key, lambda: _evidence(context.loaded_base, context.anchors, cases))


def shot_cases(
    context: MethodContext, users: Sequence[UserShots], options: FuseOptions, memory: MemoryOptions
) -> tuple[ShotCase, ...]:
    """The inputs of evidence: for each user, the shots as examples, and the `candidates` nearest anchors."""
    return tuple(
        ShotCase(shot_examples(context, user, memory), tuple(_candidates(context, user, options)[: options.candidates]))
        for user in users
    )


def _evidence(base: LoadedBase, anchors: AnchorLookup, cases: Sequence[ShotCase]) -> list[dict[int | None, float]]:
    candidates: list[list[int | None]] = [[None, *(place for place, _ in case.candidates)] for case in cases]
    # 1. the distinct candidates of these users
    columns = {place: n for n, place in enumerate(dict.fromkeys(place for places in candidates for place in places))}
    loras = [() if place is None else (anchors[place],) for place in columns]
    whole = [(case.examples, ()) for case in cases]
    # 2. drop labels that are improbable without an anchor
    placements = [lora.placement for anchor in loras for lora in anchor]
    shots = prune_examples(base, whole, placements)
    # 3. one prompt tree per shot, scored under each candidate of its user
    trees = [build_prompt_tree(example) for examples in shots for example in examples]
    first, pairs = 0, []
    for examples, places in zip(shots, candidates, strict=True):
        pairs += [(first + n, columns[place]) for place in places for n in range(len(examples))]
        first += len(examples)
    values = iter(completion_log_likelihoods(base, trees, loras, pairs))
    # 4. sum over the shots
    return [
        {place: sum(example_log_likelihood(example, next(values)) for example in examples) for place in places}
        for examples, places in zip(shots, candidates, strict=True)
    ]


def _candidates(context: MethodContext, user: UserShots, options: FuseOptions) -> Candidates:
    key = ("nearest", user.number, options.candidates, options.top_k)
    return context.cached(key, lambda: nearest_anchors(context, user, options))


def _weigh(
    context: MethodContext,
    user: UserShots,
    weighting: str,
    options: FuseOptions,
    evidence: dict[int, dict[int | None, float]],
) -> list[AnchorShare]:
    if weighting == "random":
        draw = random.Random(f"{context.seed} {user.number}")
        chosen = draw.sample(range(len(context.anchors)), min(options.top_k, len(context.anchors)))
        return [AnchorShare.rounded(place, 0.0, 1.0 / len(chosen)) for place in chosen]
    if weighting == "none" or not (candidates := _candidates(context, user, options)):
        return []
    if weighting in SHOT_WEIGHTINGS:
        return _evidence_shares(candidates[: options.candidates], options, evidence[user.number])
    nearest, of_cosines = candidates[: options.top_k], WEIGHTINGS[weighting].of_cosines
    assert of_cosines is not None, weighting
    weights = of_cosines([value for _, value in nearest])
    return [AnchorShare.rounded(place, value, w) for (place, value), w in zip(nearest, weights, strict=True)]


def _evidence_shares(
    candidates: Sequence[tuple[int, float]], options: FuseOptions, evidence: dict[int | None, float]
) -> list[AnchorShare]:
    """The `top_k` anchors under which the shots are likeliest, each weighted by `scale` times its posterior
    probability.

    The task adapter alone is also a candidate. The scale is below 1 because an anchor fits its own user better than any
    other user.
    """
    # 1. the likeliest anchors
    best = sorted(candidates, key=lambda pair: -evidence[pair[0]])[: options.top_k]
    # 2. their posterior probabilities, with the task adapter as null candidate; weights near zero are left out
    shares = evidence_weights([evidence[place] for place, _ in best], evidence[None], options.sharpness)
    weights = [options.scale * share for share in shares]
    return [
        AnchorShare.rounded(place, value, weight)
        for (place, value), weight in zip(best, weights, strict=True)
        if weight >= MIN_ANCHOR_WEIGHT
    ]


def merge_shares(
    anchors: Sequence[LoraWeights], weights: Sequence[float], *, released: bool = False
) -> tuple[LoraWeights, ...]:
    """The `anchors` merged with these weights, as a tuple of one LoRA; an empty tuple if nothing remains to merge.

    The merged ΔW is exactly the weighted sum of the anchors' ΔW. With `released`, A and B are averaged separately, as
    in the code of the paper's authors.
    """
    merged = average_factors(anchors, weights) if released else merge_loras(list(zip(anchors, weights, strict=True)))
    return () if merged is None else (merged,)
