"""Stacks in one group: everybody's own, trained on what lies under it, as a file gives it back."""

import pytest
import torch

from mta_cli.engine.base import LoadedBase
from mta_cli.engine.lora import LoraWeights, initial
from mta_cli.engine.methods.shape import Bench, Person, Settings
from mta_cli.engine.methods.stacks import OWN, stack_bytes, stacks_as
from mta_cli.engine.score import mean_loss
from mta_cli.errors import UsageFault
from tests.engine.lora_cases import random_rows
from tests.engine.methods.benches import a_bench, a_person, same
from tests.engine.methods.tagging import taught

NOTHING: tuple[LoraWeights, ...] = ()


def alone(
    bench: Bench, person: Person, under: tuple[LoraWeights, ...] = NOTHING, **changes: float | str
) -> LoraWeights:
    settings: Settings = {**OWN, **changes}
    (found,) = stacks_as(bench, [person], [under], settings)
    assert found is not None
    return found


def test_it_fits_the_shots_and_is_kept_in_float16(base: LoadedBase) -> None:
    person = a_person(4)
    stack = alone(a_bench(base, 0), person, steps=30, learning_rate=2e-2)
    assert mean_loss(base, person.rows, (stack,)) < mean_loss(base, person.rows) - 0.05
    assert stack.rank == 2 and stack.scale == 2.0 and stack.placement.late is not None
    assert {half.dtype for pair in stack.factors.values() for half in pair} == {torch.float16}
    assert {path.rsplit(".", 1)[-1] for path in stack.factors} == {"q_proj", "v_proj"}


def test_it_is_trained_above_what_lies_under_it(base: LoadedBase) -> None:
    person, bench = a_person(random_rows([24] * 4)), a_bench(base, 0)
    under = (taught(base, person.rows),)
    above = alone(bench, person, under, steps=20, learning_rate=5e-3)
    assert mean_loss(base, person.rows, (*under, above)) < mean_loss(base, person.rows, under)
    assert not same(above, alone(bench, person, steps=20, learning_rate=5e-3))


def test_company_changes_nothing_but_rounding(base: LoadedBase) -> None:
    people, bench = [a_person(3), a_person(0, 1), a_person(1, 2)], a_bench(base, 0)
    first, nobody, second = stacks_as(bench, people, [NOTHING] * 3, OWN)
    again = stacks_as(bench, people, [NOTHING] * 3, OWN)
    assert nobody is None and first is not None and second is not None
    for person, stack, other in ((people[0], first, again[0]), (people[2], second, again[2])):
        assert other is not None and same(stack, other)
        for path, pair in alone(bench, person).factors.items():
            for half, together in zip(pair, stack.factors[path], strict=True):
                torch.testing.assert_close(half.float(), together.float(), atol=2e-3, rtol=0)


def test_epochs_stand_instead_of_steps(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    from mta_cli.engine.methods import stacks

    taken = list[int]()

    class Counting(stacks.Trainer):
        def steps(self):  # type: ignore[no-untyped-def]
            taken.extend(member.schedule.steps for member in self.members)
            return super().steps()

    monkeypatch.setattr(stacks, "Trainer", Counting)
    people = [a_person(3), a_person(5, 1)]
    stacks_as(a_bench(base, 0), people, [NOTHING] * 2, {**OWN, "epochs": 2, "batch_size": 1, "steps": 99})
    stacks_as(a_bench(base, 0), people, [NOTHING] * 2, {**OWN, "steps": 4})
    assert taken == [6, 10, 4, 4]


def test_a_frozen_a_is_the_one_that_the_seed_gives(base: LoadedBase) -> None:
    bench = a_bench(base, 0, seed=3)
    (stack,) = stacks_as(bench, [a_person(2)], [NOTHING], OWN, frozen_a=True)
    assert stack is not None
    for path, (a, _) in initial(base.model, "q_proj,v_proj", "late", 2, 4.0, 3).factors.items():
        assert torch.equal(stack.factors[path][0], a.half()) and stack.factors[path][1].any()


def test_who_has_no_rows_or_a_training_that_fails_gets_none(base: LoadedBase) -> None:
    bench = a_bench(base, 0)
    assert stacks_as(bench, [a_person(0), a_person(0, 1)], [NOTHING] * 2, OWN) == [None, None]
    assert stacks_as(bench, [], [], OWN) == []
    assert stacks_as(bench, [a_person(1)], [NOTHING], {**OWN, "learning_rate": float("nan")}) == [None]


def test_bytes_are_two_for_each_number(base: LoadedBase) -> None:
    """64 inputs; q has 64 outputs and v 32; late parts stand in one layer, all parts in two."""
    for placement, layers in (("late", 1), ("all", 2)):
        stack = alone(a_bench(base, 0), a_person(1), placement=placement, rank=3)
        assert stack_bytes(stack) == 2 * 3 * layers * (64 + 64 + 64 + 32)
    assert stack_bytes(None) == 0


def test_targets_that_the_base_lacks_are_refused(base: LoadedBase) -> None:
    with pytest.raises(UsageFault, match="no_such"):
        alone(a_bench(base, 0), a_person(1), targets="no_such")
