"""Fusion and stack: what each part is, what the stack stands on, and what has to be kept of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.engine.methods.fusion import (
    SHARE_BYTES,
    WeighAnchors,
    merge_anchors,
    weigh_by_evidence,
    weigh_by_similarity,
)
from mta_cli.engine.methods.label_priors import COUNT_BYTES, label_priors
from mta_cli.engine.methods.merge_then_adapt import METHODS
from mta_cli.engine.methods.method import MethodContext, Settings, UserModel, UserShots
from mta_cli.engine.methods.stacks import (
    AUTO_LEARNING_RATE,
    LABEL_LEARNING_RATE,
    TEXT_LEARNING_RATE,
    FitStacks,
    fit_cores,
    fit_loras,
)
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import mean_loss
from mta_cli.options import AdaptOptions, AnswerOptions
from tests.engine.methods.benches import a_bench, a_person, same
from tests.engine.methods.tagging import LABELS, tag_bench, tagger

BY_NAME = {method.name: method for method in METHODS}
WITH_CORE = ["mta", "mta-alone"]
WITH_LORA = [name for name in BY_NAME if name not in WITH_CORE]
FUSED = [name for name in BY_NAME if name != "stack"]
NAN = float("nan")


def settings_of(name: str, **changes: float | str) -> Settings:
    return {**BY_NAME[name].settings, **changes}


def make(name: str, bench: MethodContext, people: list[UserShots], **changes: float | str) -> list[UserModel]:
    return BY_NAME[name].build_models(bench, people, settings_of(name, **changes))


@pytest.mark.parametrize(
    ("name", "weigh", "fit"),
    [
        ("mta", weigh_by_evidence, fit_cores),
        ("mta-alone", weigh_by_evidence, fit_cores),
        ("mta-lora", weigh_by_evidence, fit_loras),
        ("mta-evidence", weigh_by_evidence, fit_loras),
        ("mta-cosine", weigh_by_similarity, fit_loras),
    ],
)
def test_a_stack_is_trained_above_the_fusion(base: LoadedBase, name: str, weigh: WeighAnchors, fit: FitStacks) -> None:
    bench, person, settings = a_bench(base, 3, placement="late"), a_person(3), BY_NAME[name].settings
    (shares,) = weigh(bench, [person], settings)
    fusion = merge_anchors(bench, shares)
    (own,), (unfused,) = (fit(bench, [person], [below], settings) for below in (fusion, ()))
    (made,) = make(name, bench, [person])
    assert own.lora is not None and unfused.lora is not None and len(made.loras) == 2
    assert same(made.loras[0], fusion[0]) and same(made.loras[1], own.lora)
    assert not same(made.loras[1], unfused.lora)
    assert made.bytes == SHARE_BYTES * len(shares) + own.bytes and made.prior is None and not made.failed


@pytest.mark.parametrize("name", list(BY_NAME))
def test_the_stack_lowers_the_loss_on_the_shots(base: LoadedBase, name: str) -> None:
    bench, person = a_bench(base, 2, placement="late"), a_person(4)
    (made,) = make(name, bench, [person], steps=20, learning_rate=0.2 if name in WITH_CORE else 1e-2)
    assert mean_loss(base, person.rows, made.loras) < mean_loss(base, person.rows, made.loras[:-1]) - 0.01


def test_without_a_fusion_it_is_a_lora_alone(base: LoadedBase) -> None:
    person = a_person(2)
    (stack,) = make("stack", a_bench(base, 3, placement="late"), [person])
    assert len(stack.loras) == 1 and stack.bytes == 2 * stack.loras[0].num_parameters
    for name in WITH_LORA:
        (made,) = make(name, a_bench(base, 0), [person])
        assert len(made.loras) == 1 and same(made.loras[0], stack.loras[0]) and made.bytes == stack.bytes


def test_without_a_fusion_it_is_a_core_alone(base: LoadedBase) -> None:
    """No anchor reaches the least share where the scale is none."""
    bench, person = a_bench(base, 3, placement="late"), a_person(2)
    (made,) = make("mta", bench, [person], scale=0.0)
    (own,) = fit_cores(bench, [person], [()], BY_NAME["mta"].settings)
    assert own.lora is not None and len(made.loras) == 1 and same(made.loras[0], own.lora)
    assert made.bytes == own.bytes


def test_an_empty_bank_leaves_the_default_its_label_prior(base: LoadedBase) -> None:
    bench = tag_bench(base, 0)
    (made,) = make("mta", bench, [tagger(base, bench.task, [LABELS[1]])])
    assert made.loras == () and made.prior is not None and made.bytes == COUNT_BYTES and not made.failed


def test_a_core_takes_two_bytes_for_each_number(base: LoadedBase) -> None:
    """Late anchors have seven modules; rank 2 makes four numbers in each of them."""
    bench, person = a_bench(base, 3, placement="late"), a_person(2)
    (made,) = make("mta", bench, [person])
    (shares,) = weigh_by_evidence(bench, [person], BY_NAME["mta"].settings)
    assert made.bytes == SHARE_BYTES * len(shares) + 2 * 4 * 7 and made.loras[1].rank == 2


@pytest.mark.parametrize(
    ("name", "weight"), [("mta", "neighbour_weight"), ("mta-alone", "prior_weight"), ("mta-lora", "prior_weight")]
)
def test_a_label_prior_is_paid_for_and_neighbours_alone_change_what_is_learned(
    base: LoadedBase, name: str, weight: str
) -> None:
    bench = tag_bench(base, 2)
    person = tagger(base, bench.task, [LABELS[1], LABELS[2]])
    off = {weight: 0.0, "prior_weight": 0.0}
    (made,), (without,) = make(name, bench, [person]), make(name, bench, [person], **off)
    assert made.prior is not None and made.prior == label_priors(bench, [person], BY_NAME[name].settings)[0][0]
    assert without.prior is None and made.bytes == without.bytes + 2 * COUNT_BYTES
    assert len(made.loras) == 2
    assert [same(*both) for both in zip(made.loras, without.loras, strict=True)] == [weight == "prior_weight"] * 2


def test_with_a_lora_it_is_fusion_by_evidence_and_a_prior(base: LoadedBase) -> None:
    bench = tag_bench(base, 2)
    person = tagger(base, bench.task, [LABELS[1], LABELS[2]])
    (made,), (without,) = make("mta-lora", bench, [person]), make("mta-evidence", bench, [person])
    assert made.prior is not None and without.prior is None
    assert all(same(one, other) for one, other in zip(made.loras, without.loras, strict=True))


@pytest.mark.parametrize("name", list(BY_NAME))
def test_a_training_that_fails_is_said_and_leaves_the_rest(base: LoadedBase, name: str) -> None:
    bench, person = tag_bench(base, 2), tagger(base, tag_bench(base, 2).task, [LABELS[1], LABELS[2]])
    (made,), (sound,) = make(name, bench, [person], learning_rate=NAN), make(name, bench, [person])
    assert made.failed and not sound.failed
    assert len(made.loras) == (name in FUSED) and made.prior == sound.prior and made.bytes < sound.bytes
    assert all(same(one, other) for one, other in zip(made.loras, sound.loras, strict=False))


@pytest.mark.parametrize("name", list(BY_NAME))
def test_who_has_no_shots_gets_nothing(base: LoadedBase, name: str) -> None:
    some, nobody = make(name, a_bench(base, 2, placement="late"), [a_person(1), a_person(0, 1)])
    assert nobody == UserModel() and some.bytes > 0


def test_the_default_is_not_taken_for_what_had_its_name() -> None:
    assert {name: method.version for name, method in BY_NAME.items() if method.version != 1} == {
        "mta": 9,
        "mta-alone": 2,
    }


def test_the_default_is_what_the_program_does(base: LoadedBase) -> None:
    """The same rates of cores, rank, steps and pull as `mta user adapt`, the same weights of neighbours and habit."""
    answer = AnswerOptions()
    for labels, rate in ((True, LABEL_LEARNING_RATE), (False, TEXT_LEARNING_RATE)):
        asked = AdaptOptions().with_kind_defaults(labels)
        assert asked.learning_rate == rate
        for name in WITH_CORE:
            settings = BY_NAME[name].settings
            assert (settings["rank"], settings["steps"], settings["pull"]) == (asked.rank, asked.steps, asked.pull)
            assert settings["batch_size"] == asked.batch_size and settings["learning_rate"] == AUTO_LEARNING_RATE
            assert settings["prior_weight"] == answer.prior_weight
    assert BY_NAME["mta"].settings["neighbour_weight"] == answer.neighbour_weight


def test_a_cores_rate_is_that_of_the_task(base: LoadedBase) -> None:
    bench = tag_bench(base, 2)
    person = tagger(base, bench.task, [LABELS[0], LABELS[4]])
    for own, rate in (
        (bench, LABEL_LEARNING_RATE),
        (replace(bench, task=replace(bench.task, labels=())), TEXT_LEARNING_RATE),
    ):
        by_task, given = (
            make("mta-alone", own, [person], learning_rate=one, prior_weight=0.0)[0]
            for one in (AUTO_LEARNING_RATE, rate)
        )
        assert same(by_task.loras[1], given.loras[1])
