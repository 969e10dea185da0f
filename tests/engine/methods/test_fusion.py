"""Fusions: the anchors that the shots speak for, exactly merged; and the controls that know nothing of the person."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.merge import merge_loras
from mta_cli.engine.memory.label_prior import add_label_prior
from mta_cli.engine.methods.controls import noise_like
from mta_cli.engine.methods.fusion import (
    EVIDENCE_SETTINGS,
    METHODS,
    MIN_ANCHOR_WEIGHT,
    SHARE_BYTES,
    shot_log_likelihoods,
    weigh_at_random,
    weigh_by_evidence,
    weigh_by_gradient,
    weigh_by_similarity,
)
from mta_cli.engine.methods.label_priors import (
    COUNT_BYTES,
    NEIGHBOUR_SETTINGS,
    NO_PRIOR_SETTINGS,
    neighbour_label_prior,
)
from mta_cli.engine.methods.method import MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import completion_log_likelihoods, mean_loss, row_log_likelihoods
from mta_cli.engine.scoring.prefix_tree import PromptTree
from tests.engine.lora_cases import random_lora, random_rows
from tests.engine.methods.benches import a_bench, a_person, same
from tests.engine.methods.tagging import LABELS, tag_bench, tagger, taught

BY_NAME = {method.name: method for method in METHODS}


def make(name: str, bench: MethodContext, people: list[UserShots], **changes: float) -> list[UserModel]:
    settings: Settings = {**BY_NAME[name].settings, **changes}
    return BY_NAME[name].build_models(bench, people, settings)


def evidence(bench: MethodContext, people: list[UserShots], **changes: float) -> list[dict[int, float]]:
    plain = {**EVIDENCE_SETTINGS, "top_k": 9, "sharpness": 1.0, "scale": 1.0}
    return [dict(shares) for shares in weigh_by_evidence(bench, people, {**plain, **changes})]


def summed(bench: MethodContext, person: UserShots, part: LoraWeights | None) -> float:
    return sum(value for value, _ in row_log_likelihoods(bench.base, person.rows, (part,) if part else ()))


def test_the_weight_goes_to_the_anchor_under_which_the_shots_are_likelier(base: LoadedBase) -> None:
    rows = random_rows([24] * 4)
    bench = a_bench(base, [random_lora(base.model, 1, placement="late"), taught(base, rows)])
    (shares,) = evidence(bench, [a_person(rows)])
    assert next(iter(shares)) == 1 and shares[1] > 0.99


def test_evidence_is_the_posterior_and_the_null_keeps_its_share(base: LoadedBase) -> None:
    bench, person = a_bench(base, 4, placement="late"), a_person(3)
    logliks = [summed(bench, person, part) for part in (None, *bench.anchors)]
    for sharpness in (0.0, 0.05, 1.0):
        powers = [math.exp(sharpness * (value - max(logliks))) for value in logliks]
        (shares,) = evidence(bench, [person], sharpness=sharpness)
        posterior = {i: power / sum(powers) for i, power in enumerate(powers[1:])}
        assert shares == pytest.approx({i: w for i, w in posterior.items() if w >= MIN_ANCHOR_WEIGHT}, abs=1e-4)
    assert sum(evidence(bench, [person], sharpness=0.0)[0].values()) == pytest.approx(4 / 5)


def test_a_scale_leaves_more_to_the_null(base: LoadedBase) -> None:
    bench, person = a_bench(base, 4, placement="late"), a_person(3)
    (whole,) = evidence(bench, [person], sharpness=0.05)
    (half,) = evidence(bench, [person], sharpness=0.05, scale=0.5)
    assert half == pytest.approx({i: 0.5 * weight for i, weight in whole.items()}) and len(whole) == 4


def test_anchors_that_only_harm_leave_all_to_the_null(base: LoadedBase) -> None:
    rows = random_rows([24] * 4)
    good = taught(base, rows)
    bench = a_bench(base, [LoraWeights(good.factors, -8 * good.scale, good.placement)])
    assert evidence(bench, [a_person(rows)]) == [{}], "a share that is next to nothing is not kept"
    (made,) = make("fusion-evidence", bench, [a_person(rows)], sharpness=1.0)
    assert made == UserModel()


def test_only_the_likeliest_anchors_are_weighed(base: LoadedBase) -> None:
    bench, person = a_bench(base, 5, placement="late"), a_person(3)
    best = sorted(range(5), key=lambda i: -summed(bench, person, bench.anchors[i]))[:2]
    (shares,) = evidence(bench, [person], top_k=2, sharpness=0.05)
    assert list(shares) == best and sum(shares.values()) < 1


def test_people_are_weighed_each_by_their_own_shots(base: LoadedBase) -> None:
    bench = a_bench(base, 3, placement="late")
    people = [a_person(2), a_person(0, 1), a_person(3, 2)]
    together = evidence(bench, people, sharpness=0.05)
    assert together[1] == {}
    for person, shares in zip(people, together, strict=True):
        assert evidence(bench, [person], sharpness=0.05)[0] == pytest.approx(shares, abs=1e-5)


def test_similar_anchors_share_by_cosine(base: LoadedBase) -> None:
    profiles = torch.tensor([[0.6, 0.8], [1.0, 0.0], [-1.0, 0.0], [0.8, 0.6]])
    bench = replace(a_bench(base, 4), profiles=profiles)
    person = a_person(1, profile=torch.tensor([1.0, 0.0]))
    assert weigh_by_similarity(bench, [person], {"top_k": 2})[0] == [
        (1, pytest.approx(1 / 1.8)),
        (3, pytest.approx(0.8 / 1.8)),
    ]
    everybody = dict(weigh_by_similarity(bench, [person], {"top_k": 9})[0])
    assert list(everybody) == [1, 3, 0, 2] and everybody[2] == 0.0 and sum(everybody.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["fusion", "fusion-evidence"])
def test_a_fusion_is_the_exact_merge_of_the_chosen(base: LoadedBase, name: str) -> None:
    bench, person = a_bench(base, 4, placement="late"), a_person(3)
    weigh = {"fusion": weigh_by_similarity, "fusion-evidence": weigh_by_evidence}[name]
    (shares,) = weigh(bench, [person], BY_NAME[name].settings)
    (made,) = make(name, bench, [person])
    expected = merge_loras([(bench.anchors[i], weight) for i, weight in shares])
    assert expected is not None and len(made.loras) == 1 and same(made.loras[0], expected)
    assert made.bytes == SHARE_BYTES * len(shares) and made.prior is None and made.answerer is None


def test_random_anchors_are_drawn_for_each_person_by_the_seed_alone(base: LoadedBase) -> None:
    people = [a_person(1, number) for number in range(30)]

    def drawn(bench: MethodContext, crowd: list[UserShots]) -> dict[int, Any]:
        return dict(zip((p.number for p in crowd), weigh_at_random(bench, crowd, {"top_k": 2}), strict=True))

    found = drawn(a_bench(base, 6), people)
    assert drawn(a_bench(base, 6), people[::-1][:7]) == {p.number: found[p.number] for p in people[::-1][:7]}
    assert drawn(a_bench(base, 6, seed=1), people) != found
    for shares in found.values():
        assert len(dict(shares)) == 2 and [weight for _, weight in shares] == [0.5, 0.5]
    assert {i for shares in found.values() for i, _ in shares} == set(range(6))
    assert [len(shares) for shares in weigh_at_random(a_bench(base, 1), people[:2], {"top_k": 2})] == [1, 1]


def test_noise_stands_in_the_anchors_place_with_their_shares_and_norms(base: LoadedBase) -> None:
    bench, person = a_bench(base, 3, placement="late", seed=4), a_person(2)
    (shares,) = weigh_by_similarity(bench, [person], BY_NAME["fusion-noise"].settings)
    (made,), (real,) = make("fusion-noise", bench, [person]), make("fusion", bench, [person])
    noise = {i: noise_like(bench.anchors[i], bench.seed + i) for i, _ in shares}
    for i, one in noise.items():
        assert one.norm() == pytest.approx(bench.anchors[i].norm(), rel=1e-5)
    expected = merge_loras([(noise[i], weight) for i, weight in shares])
    assert expected is not None and same(made.loras[0], expected)
    assert made.bytes == real.bytes and not same(made.loras[0], real.loras[0])


def test_learned_weights_fit_the_shots_better_than_those_they_begin_with(base: LoadedBase) -> None:
    rows = random_rows([24] * 4)
    bench = a_bench(base, [random_lora(base.model, 1, placement="late"), taught(base, rows, steps=6)])
    person, settings = a_person(rows), {**BY_NAME["fusion-learned"].settings, "sharpness": 0.01, "pull": 0.0}
    (made,), (before,) = (
        make("fusion-learned", bench, [person], **settings),
        make("fusion-evidence", bench, [person], sharpness=0.01),
    )
    assert mean_loss(base, rows, made.loras) < mean_loss(base, rows, before.loras) - 1e-3
    (start,), (end,) = (
        (dict(w(bench, [person], settings)[0]) for w in (weigh_by_evidence,)),
        (dict(weigh_by_gradient(bench, [person], settings)[0]),),
    )
    assert end[1] > start[1] and end.keys() == start.keys()
    (held,) = weigh_by_gradient(bench, [person], {**settings, "pull": 1e6, "learn_rate": 1e-4})
    assert dict(held) == pytest.approx(start, abs=2e-3)


def test_learned_weights_are_each_persons_own(base: LoadedBase) -> None:
    bench, settings = a_bench(base, 2, placement="late"), {**BY_NAME["fusion-learned"].settings, "learn_steps": 3}
    people = [a_person(1), a_person(0, 1), a_person(2, 2)]
    together = weigh_by_gradient(bench, people, settings)
    assert together[1] == []
    for person, shares in zip(people, together, strict=True):
        assert dict(weigh_by_gradient(bench, [person], settings)[0]) == pytest.approx(dict(shares), abs=1e-5)


def test_a_label_prior_is_added_and_paid_for_where_it_has_weight(base: LoadedBase) -> None:
    bench = tag_bench(base, 2)
    person = tagger(base, bench.task, [LABELS[1], LABELS[1], LABELS[2]])
    for name in ("fusion", "fusion-evidence"):
        (without,), (with_it,) = make(name, bench, [person]), make(name, bench, [person], prior_weight=0.5)
        assert without.prior is None and with_it.prior is not None
        said = list(with_it.prior("a film"))
        assert len(said) == len(LABELS) and said.index(max(said)) == 1
        assert with_it.bytes == without.bytes + 2 * COUNT_BYTES and same(with_it.loras[0], without.loras[0])


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "fusion-random"])
def test_who_has_no_shots_and_who_has_no_anchors_gets_the_task_adapter_alone(base: LoadedBase, name: str) -> None:
    assert make(name, a_bench(base, 2, placement="late"), [a_person(0)]) == [UserModel()]
    assert make(name, a_bench(base, []), [a_person(1)]) == [UserModel()]


def test_nobody_is_no_fault(base: LoadedBase) -> None:
    for name in BY_NAME:
        assert make(name, a_bench(base, 2), []) == []


def test_likelihoods_are_weighed_once_for_all_methods(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.methods import fusion

    asked, honest = list[int](), fusion.completion_log_likelihoods

    def counted(*given: Any, **named: Any) -> Any:
        asked.append(1)
        return honest(*given, **named)

    monkeypatch.setattr(fusion, "completion_log_likelihoods", counted)
    bench, people = a_bench(base, 3, placement="late"), [a_person(2), a_person(3, 2)]
    first = evidence(bench, people)
    assert evidence(bench, people) == first and len(asked) == 1
    evidence(bench, people[:1])
    evidence(replace(bench, cache={}), people)
    assert len(asked) == 3
    make("fusion-noise", bench, people)
    assert set(bench.cache) == {("likelihoods", (0, 2), 0.0), ("likelihoods", (0,), 0.0)}


def test_evidence_is_beside_neighbours_where_these_count(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """What neighbours and habit know of a shot already speaks for no anchor."""
    bench = tag_bench(base, 3)
    person = tagger(base, bench.task, [LABELS[2], LABELS[5], LABELS[2]])
    alone, quick = (
        shot_log_likelihoods(bench, [person], settings)[0] for settings in (NO_PRIOR_SETTINGS, NEIGHBOUR_SETTINGS)
    )
    monkeypatch.setattr("mta_cli.engine.scoring.label_examples.MIN_LABEL_PROBABILITY", 0.0)
    (beside,) = shot_log_likelihoods(replace(bench, cache={}), [person], NEIGHBOUR_SETTINGS)
    assert quick == pytest.approx(beside, abs=0.05) and quick != beside  # less labels that are next to impossible
    for place, parts in enumerate([(), *((anchor,) for anchor in bench.anchors)]):
        assert alone[place] == pytest.approx(
            sum(value for value, _ in row_log_likelihoods(base, person.rows, parts)), abs=1e-3
        )
        expected = 0.0
        for n, (text, output) in enumerate(zip(person.inputs, person.outputs, strict=True)):
            prior = neighbour_label_prior(
                bench, replace(person, outputs=person.outputs[:n] + person.outputs[n + 1 :]), 1.7
            )
            fork = PromptTree(PromptTree.from_row(person.rows[n]).prompt, bench.label_tokens)
            (branches,) = completion_log_likelihoods(base, [fork], [parts], [(0, 0)])
            expected += float(torch.tensor(add_label_prior(branches, prior, text)).log_softmax(0)[LABELS.index(output)])
        assert beside[place] == pytest.approx(expected, abs=1e-3)
