"""Stacks in one group: everybody's own LoRA or core, trained on what lies under it, as the store gives it back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.lora.lora_xs import CoreKind, LoraXsCore, bank_basis
from mta_cli.engine.methods.method import MethodContext, Settings, UserShots
from mta_cli.engine.methods.stacks import CORE_SETTINGS, LORA_SETTINGS, FitStacks, UserStack, fit_cores, fit_loras
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.log_likelihood import mean_loss
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.errors import UsageError
from tests.engine.lora_cases import difference, random_rows
from tests.engine.methods.benches import a_bench, a_person, same
from tests.engine.methods.tagging import taught

NOTHING: tuple[LoraWeights, ...] = ()
BOTH = pytest.mark.parametrize(
    ("fit", "defaults"), [(fit_loras, LORA_SETTINGS), (fit_cores, CORE_SETTINGS)], ids=["loras", "cores"]
)


def late_bench(base: LoadedBase, anchors: int = 3, seed: int = 0) -> MethodContext:
    return a_bench(base, anchors, placement="late", seed=seed)


def part_of(own: UserStack) -> LoraWeights:
    assert own.lora is not None and own.loras == (own.lora,) and not own.failed
    return own.lora


def alone(
    fit: FitStacks,
    bench: MethodContext,
    person: UserShots,
    settings: Settings,
    under: tuple[LoraWeights, ...] = NOTHING,
) -> LoraWeights:
    (found,) = fit(bench, [person], [under], settings)
    return part_of(found)


def test_a_lora_fits_the_shots_and_is_kept_in_float16(base: LoadedBase) -> None:
    person = a_person(4)
    stack = alone(fit_loras, a_bench(base, 0), person, {**LORA_SETTINGS, "steps": 30, "learning_rate": 2e-2})
    assert mean_loss(base, person.rows, (stack,)) < mean_loss(base, person.rows) - 0.05
    assert stack.rank == 2 and stack.scale == 2.0 and stack.placement.late_tokens is not None
    assert {half.dtype for pair in stack.factors.values() for half in pair} == {torch.float16}
    assert {path.rsplit(".", 1)[-1] for path in stack.factors} == {"q_proj", "v_proj"}


def test_a_core_fits_the_shots_where_the_anchors_act(base: LoadedBase) -> None:
    person, bench = a_person(4), late_bench(base)
    core = alone(fit_cores, bench, person, {**CORE_SETTINGS, "steps": 30, "learning_rate": 0.3, "pull": 0.0})
    assert mean_loss(base, person.rows, (core,)) < mean_loss(base, person.rows) - 0.02
    assert core.rank == 2 and core.scale == 1.0 and core.placement == bench.anchors[0].placement
    assert list(core.factors) == list(bench.anchors[0].factors)


@pytest.mark.parametrize("kind", ["core", "gains", "code"])
def test_a_core_is_what_the_trainer_makes_of_the_settings(base: LoadedBase, kind: CoreKind) -> None:
    bench, people = late_bench(base, seed=3), [a_person(3), a_person(5, 1)]
    settings: Settings = {"rank": 3, "steps": 4, "batch_size": 2, "learning_rate": 0.07, "pull": 0.4}
    under = [(bench.anchors[0],), NOTHING]
    basis = bank_basis(bench.anchors, 3)
    assert basis is not None
    core = LoraXsCore(basis, kind, pull=0.4)
    members = [
        GroupMember(core, person.rows, Schedule(4, 2, 0.07), 3, below)
        for person, below in zip(people, under, strict=True)
    ]
    trainer = Trainer(base, members)
    list(trainer.train_steps())
    for i, own in enumerate(fit_cores(bench, people, under, settings, kind=kind)):
        packed = trainer.packed_core(i)
        assert same(part_of(own), trainer.stored_weights(i))
        assert packed is not None and own.bytes == len(packed)


@BOTH
def test_it_is_trained_above_what_lies_under_it(base: LoadedBase, fit: FitStacks, defaults: Settings) -> None:
    person, bench = a_person(random_rows([24] * 4)), late_bench(base)
    under = (taught(base, person.rows),)
    settings = {**defaults, "steps": 20, "learning_rate": 5e-3 if fit is fit_loras else 0.1}
    above = alone(fit, bench, person, settings, under)
    assert mean_loss(base, person.rows, (*under, above)) < mean_loss(base, person.rows, under)
    assert not same(above, alone(fit, bench, person, settings))


@BOTH
def test_company_changes_nothing_but_rounding(base: LoadedBase, fit: FitStacks, defaults: Settings) -> None:
    people, bench = [a_person(3), a_person(0, 1), a_person(1, 2)], late_bench(base)
    found, again = (fit(bench, people, [NOTHING] * 3, defaults) for _ in range(2))
    assert found[1] == again[1] == UserStack()
    for i in (0, 2):
        together = part_of(found[i])
        assert same(together, part_of(again[i])) and found[i].bytes == again[i].bytes > 0
        assert difference(together, alone(fit, bench, people[i], defaults)) < 2e-3


@BOTH
def test_epochs_stand_instead_of_steps(
    base: LoadedBase, fit: FitStacks, defaults: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = list[int]()

    class Counting(Trainer):
        def steps(self):  # type: ignore[no-untyped-def]
            taken.extend(member.schedule.steps for member in self.members)
            return super().steps()

    monkeypatch.setattr("mta_cli.engine.methods.stacks.Trainer", Counting)
    people, bench = [a_person(3), a_person(5, 1)], late_bench(base)
    fit(bench, people, [NOTHING] * 2, {**defaults, "epochs": 2, "batch_size": 1, "steps": 99})
    fit(bench, people, [NOTHING] * 2, {**defaults, "steps": 4})
    fit(bench, people, [NOTHING] * 2, {**defaults, "steps": 3, "epochs": 0})
    assert taken == [6, 10, 4, 4, 3, 3]


def test_a_frozen_a_is_the_one_that_the_seed_gives(base: LoadedBase) -> None:
    (own,) = fit_loras(a_bench(base, 0, seed=3), [a_person(2)], [NOTHING], LORA_SETTINGS, frozen_a=True)
    stack = part_of(own)
    for path, (a, _) in init_lora_weights(base.model, "q_proj,v_proj", "late", 2, 4.0, 3).factors.items():
        assert torch.equal(stack.factors[path][0], a.half()) and stack.factors[path][1].any()


@BOTH
def test_who_has_no_rows_has_nothing_and_has_not_failed(base: LoadedBase, fit: FitStacks, defaults: Settings) -> None:
    bench = late_bench(base)
    assert fit(bench, [a_person(0), a_person(0, 1)], [NOTHING] * 2, defaults) == [UserStack(), UserStack()]
    assert fit(bench, [], [], defaults) == []
    assert UserStack().loras == () and UserStack().bytes == 0


@BOTH
@pytest.mark.parametrize(("steps", "rate"), [(1, 1e6), (1, float("nan")), (3, float("nan"))])
def test_a_training_that_fails_is_said(
    base: LoadedBase, fit: FitStacks, defaults: Settings, steps: int, rate: float
) -> None:
    """Numbers too large for float16, numbers that are none, and a loss that is none."""
    found = fit(
        late_bench(base),
        [a_person(1), a_person(0, 1)],
        [NOTHING] * 2,
        {**defaults, "steps": steps, "learning_rate": rate},
    )
    assert found == [UserStack(failed=True), UserStack()]


@BOTH
def test_one_that_fails_leaves_the_others_alone(base: LoadedBase, fit: FitStacks, defaults: Settings) -> None:
    people, bench = [a_person(3), a_person(2, 1), a_person(2, 2)], late_bench(base)
    anchor = bench.anchors[0]
    broken = replace(anchor, factors={path: (a, b + float("nan")) for path, (a, b) in anchor.factors.items()})
    found = fit(bench, people, [NOTHING, (broken,), NOTHING], defaults)
    wanted = fit(bench, people, [NOTHING] * 3, defaults)
    assert found[1] == UserStack(failed=True)
    for i in (0, 2):
        assert difference(found[i].lora, wanted[i].lora) < 2e-3


def test_a_bank_without_directions_gives_no_core_and_no_failure(base: LoadedBase) -> None:
    assert fit_cores(a_bench(base, 0), [a_person(2), a_person(0, 1)], [NOTHING] * 2, CORE_SETTINGS) == [
        UserStack(),
        UserStack(),
    ]


def test_bytes_of_a_lora_are_two_for_each_number(base: LoadedBase) -> None:
    """64 inputs; q has 64 outputs and v 32; late parts stand in one layer, all parts in two."""
    for placement, layers in (("late", 1), ("all", 2)):
        (own,) = fit_loras(
            a_bench(base, 0), [a_person(1)], [NOTHING], {**LORA_SETTINGS, "placement": placement, "rank": 3}
        )
        assert own.bytes == 2 * 3 * layers * (64 + 64 + 64 + 32)


@pytest.mark.parametrize(("kind", "numbers"), [("core", 7 * 9), ("gains", 7 * 3), ("code", 3)])
def test_bytes_of_a_core_are_two_for_each_number(base: LoadedBase, kind: CoreKind, numbers: int) -> None:
    """Anchors on the upper layer have seven modules."""
    (own,) = fit_cores(late_bench(base), [a_person(1)], [NOTHING], {**CORE_SETTINGS, "rank": 3}, kind=kind)
    assert own.bytes == 2 * numbers


def test_targets_that_the_base_lacks_are_refused(base: LoadedBase) -> None:
    with pytest.raises(UsageError, match="no_such"):
        alone(fit_loras, a_bench(base, 0), a_person(1), {**LORA_SETTINGS, "targets": "no_such"})
