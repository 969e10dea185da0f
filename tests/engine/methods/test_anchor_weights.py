"""Anchors and weights: evidence by hand, the paper's rule, the authors' code, random controls, and batches."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import average_factors, merge_loras
from mta_cli.engine.methods import anchor_weights
from mta_cli.engine.methods.anchor_weights import (
    MIN_ANCHOR_WEIGHT,
    AnchorShare,
    evidence_of,
    merge_shares,
    user_batches,
    weigh_anchors,
    weighting_for,
)
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.model.load import LoadedBase
from mta_cli.options import FuseOptions, MemoryOptions
from tests.engine.likelihoods import row_log_likelihoods
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.methods.contexts import a_context, a_user, same, units
from tests.engine.methods.tagging import LABELS, tag_context, tagger, taught

OFF = MemoryOptions("off")
PLAIN = FuseOptions(top_k=9, sharpness=1.0, scale=1.0)


def weigh(
    context: MethodContext, users: list[UserShots], weighting: str = "evidence", **changes: float
) -> list[dict[int, float]]:
    found = weigh_anchors(context, users, weighting, replace(PLAIN, **changes), OFF)
    return [{share.anchor: share.weight for share in shares} for shares in found]


def summed(context: MethodContext, user: UserShots, lora: LoraWeights | None) -> float:
    found = row_log_likelihoods(context.loaded_base, user.rows, (lora,) if lora else ())
    return sum(value for value, _ in found)


def test_the_weight_goes_to_the_anchor_under_which_the_shots_are_likelier(base: LoadedBase) -> None:
    rows = random_rows([24] * 4)
    context = a_context(base, [random_lora(base.model, 1, placement="late"), taught(base, rows)])
    (shares,) = weigh(context, [a_user(rows)])
    assert next(iter(shares)) == 1 and shares[1] > 0.99


def test_evidence_is_the_posterior_and_the_null_candidate_keeps_its_share(base: LoadedBase) -> None:
    context, user = a_context(base, 4, placement="late"), a_user(3)
    logliks = [summed(context, user, lora) for lora in (None, *context.anchors)]
    for sharpness in (0.0, 0.05, 1.0):
        powers = [math.exp(sharpness * (value - max(logliks))) for value in logliks]
        (shares,) = weigh(context, [user], sharpness=sharpness)
        posterior = {i: power / sum(powers) for i, power in enumerate(powers[1:])}
        assert shares == pytest.approx({i: w for i, w in posterior.items() if w >= MIN_ANCHOR_WEIGHT}, abs=1e-4)
    assert sum(weigh(context, [user], sharpness=0.0)[0].values()) == pytest.approx(4 / 5)


def test_a_scale_leaves_more_to_the_null_candidate(base: LoadedBase) -> None:
    context, user = a_context(base, 4, placement="late"), a_user(3)
    (whole,) = weigh(context, [user], sharpness=0.05)
    (half,) = weigh(context, [user], sharpness=0.05, scale=0.5)
    assert half == pytest.approx({i: 0.5 * weight for i, weight in whole.items()}) and len(whole) == 4


def test_anchors_that_only_harm_are_left_out(base: LoadedBase) -> None:
    rows = random_rows([24] * 4)
    good = taught(base, rows)
    context = a_context(base, [LoraWeights(good.factors, -8 * good.scale, good.placement)])
    assert weigh(context, [a_user(rows)]) == [{}], "a weight that is next to nothing is not kept"


def test_only_the_likeliest_of_the_nearest_anchors_are_weighed(base: LoadedBase) -> None:
    context, user = a_context(base, 5, placement="late"), a_user(3)
    assert user.profile is not None
    best = sorted(range(5), key=lambda i: -summed(context, user, context.anchors[i]))[:2]
    (shares,) = weigh(context, [user], top_k=2, sharpness=0.05)
    assert list(shares) == best and sum(shares.values()) < 1
    nearest = sorted(range(5), key=lambda i: -float(context.profiles[i] @ user.profile))[:3]
    (evidence,) = evidence_of(replace(context, cache={}), [user], FuseOptions(top_k=2, candidates=3), OFF)
    assert list(evidence) == [None, *nearest]


def test_each_user_is_weighed_by_their_own_shots(base: LoadedBase) -> None:
    context = a_context(base, 3, placement="late")
    users = [a_user(2), a_user(0, 1), a_user(3, 2)]
    together = weigh(context, users, sharpness=0.05)
    for user, shares in zip(users, together, strict=True):
        alone = weigh(replace(context, cache={}), [user], sharpness=0.05)[0]
        assert alone == pytest.approx(shares, abs=1e-5)


def test_without_shots_similarity_decides(base: LoadedBase) -> None:
    context, user = a_context(base, 3, placement="late"), a_user(0)
    assert weighting_for(user, "evidence") == "similarity" and weighting_for(a_user(1), "evidence") == "evidence"
    assert weigh(context, [user], "evidence") == weigh(context, [user], "similarity") != [{}]


def test_the_papers_rule_shares_by_cosine(base: LoadedBase) -> None:
    profiles = torch.tensor([[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0], [0.8, 0.6]])
    context = replace(a_context(base, 4), profiles=profiles)
    user = a_user(1, profile=torch.tensor([1.0, 0.0]))
    assert weigh(context, [user], "similarity", top_k=2) == [pytest.approx({1: 1 / 1.8, 3: 0.8 / 1.8})]
    (everybody,) = weigh(replace(context, cache={}), [user], "similarity")
    assert list(everybody) == [1, 3, 0, 2] and everybody[2] == 0.0 and sum(everybody.values()) == pytest.approx(1)
    assert weigh(replace(context, cache={}), [user], "uniform", top_k=2) == [{1: 0.5, 3: 0.5}]


def test_an_anchor_with_a_minimum_similarity_serves_the_near_alone(base: LoadedBase) -> None:
    profiles = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.8, 0.6]])
    context = replace(a_context(base, 3), profiles=profiles, min_similarities={2: 0.9})
    user = a_user(1, profile=torch.tensor([1.0, 0.0]))
    assert list(weigh(context, [user], "similarity", top_k=2)[0]) == [1, 0], "the next nearest takes its place"


def test_a_user_without_a_profile_has_no_anchors(base: LoadedBase) -> None:
    user = replace(a_user(2), profile=None)
    for weighting in ("similarity", "evidence", "none"):
        assert weigh(a_context(base, 3, placement="late"), [user], weighting) == [{}]  # type: ignore[arg-type]


def test_random_anchors_are_drawn_for_each_user_by_the_seed_alone(base: LoadedBase) -> None:
    users = [a_user(1, number) for number in range(30)]

    def drawn(context: MethodContext, some: list[UserShots]) -> dict[int, dict[int, float]]:
        return dict(zip((u.number for u in some), weigh(context, some, "random", top_k=2), strict=True))

    found = drawn(a_context(base, 6), users)
    assert drawn(a_context(base, 6), users[::-1][:7]) == {u.number: found[u.number] for u in users[::-1][:7]}
    assert drawn(a_context(base, 6, seed=1), users) != found
    assert all(list(shares.values()) == [0.5, 0.5] for shares in found.values())
    assert {i for shares in found.values() for i in shares} == set(range(6))


def test_the_authors_code_gives_the_shares_out_from_the_other_end(base: LoadedBase) -> None:
    left, right = torch.eye(8)[0], torch.eye(8)[1]
    between = torch.nn.functional.normalize(3 * left + right, dim=0)  # cosines 3 : 1
    context = replace(a_context(base, 4), profiles=torch.stack([left, -left, right, -right]))
    user = a_user(3, profile=between)
    assert weigh(context, [user], "released", top_k=2) == [pytest.approx({0: 0.25, 2: 0.75})]
    anchors = [context.anchors[0], context.anchors[2]]
    (merged,) = merge_shares(anchors, [0.25, 0.75], released=True)
    expected = average_factors(anchors, [0.25, 0.75])
    assert expected is not None and same(merged, expected)


def test_a_fusion_is_the_exact_merge(base: LoadedBase) -> None:
    anchors = [random_lora(base.model, n) for n in range(3)]
    expected = merge_loras(list(zip(anchors, [0.5, 0.2, 0.1], strict=True)))
    assert expected is not None and same(merge_shares(anchors, [0.5, 0.2, 0.1])[0], expected)
    assert merge_shares([], []) == ()


def test_shares_are_what_a_recipe_keeps_of_them(base: LoadedBase) -> None:
    share = AnchorShare.rounded(3, 0.1, 0.2)
    assert share == AnchorShare.rounded(share.anchor, share.similarity, share.weight)
    assert share.weight != 0.2 and share.weight == pytest.approx(0.2, rel=1e-7)


def test_evidence_is_computed_once_for_all_methods(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, honest = list[int](), anchor_weights.completion_log_likelihoods

    def counted(*given: object, **named: object) -> object:
        asked.append(1)
        return honest(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(anchor_weights, "completion_log_likelihoods", counted)
    context, users = a_context(base, 2, placement="late"), [a_user(1), a_user(0, 1), a_user(2, 2)]
    first = weigh(context, users, sharpness=0.5)
    assert weigh(context, users, sharpness=0.5) == first and weigh(context, users, scale=0.1) and asked == [1]


def test_labels_without_a_chance_do_not_run_under_anchors(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving them out changes the evidence by next to nothing."""
    context = tag_context(base, 2)
    users, options = [tagger(base, context.task, [LABELS[1], LABELS[2]])], MemoryOptions()
    (quick,) = evidence_of(context, users, FuseOptions(), options)
    monkeypatch.setattr("mta_cli.engine.scoring.label_examples.MIN_LABEL_PROBABILITY", 0.0)
    (whole,) = evidence_of(replace(context, cache={}), users, FuseOptions(), options)
    assert quick == pytest.approx(whole, abs=0.05)


@pytest.mark.parametrize(
    ("users", "anchors", "expected"),
    [(9, 99, [4]), (2, 99, [2, 2]), (9, 3, [1, 3]), (9, 1, [1, 1, 1, 1])],
)
def test_who_is_weighed_together(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch, users: int, anchors: int, expected: list[int]
) -> None:
    """At most so many users and so many different anchors; everybody once and in order."""
    monkeypatch.setattr(anchor_weights, "MAX_USERS_PER_BATCH", users)
    monkeypatch.setattr(anchor_weights, "MAX_ANCHORS_PER_BATCH", anchors)
    profiles = torch.eye(8)
    context = replace(a_context(base, 8), profiles=profiles)
    turned = [profiles[0] + 0.9 * profiles[1], profiles[2] + 0.9 * profiles[3], profiles[2] + 0.9 * profiles[4]]
    near = [torch.nn.functional.normalize(one, dim=0) for one in (turned[0], turned[1], turned[2], turned[2])]
    some = [a_user(1, n, profile) for n, profile in enumerate(near)]
    batches = list(user_batches(context, some, "evidence", FuseOptions(candidates=2, top_k=2)))
    assert [user for batch in batches for user in batch] == some and [len(batch) for batch in batches] == expected
    alone = list(user_batches(context, some, "similarity", FuseOptions(candidates=2, top_k=2)))
    assert len(alone) == math.ceil(len(some) / users), "similarity needs no anchors' weights"


def test_profiles_are_units() -> None:
    assert torch.allclose(units(3, 0).norm(dim=1), torch.ones(3))
