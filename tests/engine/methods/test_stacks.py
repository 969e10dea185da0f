"""Stacks of one group: each user's own LoRA, trained on the fusion below it, as the store gives it back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.methods.method import MethodContext, UserShots
from mta_cli.engine.methods.stacks import (
    UserStack,
    initial_stack,
    stack_member,
    stack_schedule,
    train_stacks,
)
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.training.trainer import Schedule, Trainer
from mta_cli.errors import UsageError
from mta_cli.options import AdaptOptions, MemoryOptions
from tests.engine.likelihoods import mean_loss
from tests.engine.lora_cases import difference, random_rows
from tests.engine.methods.contexts import a_context, a_user, same
from tests.engine.methods.tagging import taught

OFF = MemoryOptions("off")
LORA = AdaptOptions(placement="late")


def late_context(base: LoadedBase, anchors: int = 3, seed: int = 0) -> MethodContext:
    return a_context(base, anchors, placement="late", seed=seed)


def fit(
    context: MethodContext, users: list[UserShots], options: AdaptOptions, fusions: list[Any] | None = None
) -> list[UserStack]:
    return train_stacks(context, users, fusions or [()] * len(users), options, OFF)


def alone(context: MethodContext, user: UserShots, options: AdaptOptions, fusion: Any = ()) -> LoraWeights:
    (own,) = fit(context, [user], options, [fusion])
    (lora,) = own.loras
    assert not own.failed
    return lora


def test_a_lora_fits_the_shots_and_is_kept_in_float16(base: LoadedBase) -> None:
    user = a_user(4)
    stack = alone(a_context(base, 0), user, replace(LORA, steps=30, learning_rate=2e-2))
    assert mean_loss(base, user.rows, (stack,)) < mean_loss(base, user.rows) - 0.05
    assert stack.rank == 2 and stack.scale == 2.0 and stack.placement.late_tokens is not None
    assert {half.dtype for pair in stack.factors.values() for half in pair} == {torch.float16}
    assert {path.rsplit(".", 1)[-1] for path in stack.factors} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("rows", "given", "steps", "batch_size"),
    [
        (1, {}, 16, 1),
        (5, {}, 35, 1),
        (20, {}, 80, 1),
        (40, {}, 120, 1),
        (200, {}, 400, 1),
        (40, {"steps": 12}, 12, 1),
        (40, {"epochs": 2}, 80, 1),
        (40, {"batch_size": 4}, 30, 4),
        (5, {"epochs": 3}, 15, 1),
        (5, {"epochs": 3, "steps": 50, "batch_size": 2}, 9, 2),
    ],
)
def test_the_more_shots_the_fewer_passes(rows: int, given: dict[str, int], steps: int, batch_size: int) -> None:
    schedule = stack_schedule(rows, replace(LORA, **given), labels=False)
    assert (schedule.steps, schedule.batch_size) == (steps, batch_size)


def test_labels_are_learned_at_a_quarter_of_the_rate_of_texts() -> None:
    texts, labels = (stack_schedule(9, LORA, labels=labels) for labels in (False, True))
    assert (texts.learning_rate, labels.learning_rate) == (2e-3, 5e-4) and texts.steps == labels.steps
    given = replace(LORA, learning_rate=0.1)
    assert {stack_schedule(9, given, labels=labels).learning_rate for labels in (False, True)} == {0.1}


def test_a_stack_is_what_the_trainer_makes_of_its_members(base: LoadedBase) -> None:
    context, users = late_context(base, seed=3), [a_user(3), a_user(5, 1)]
    fusions: list[Any] = [(context.anchors[0],), ()]
    options = replace(LORA, steps=4, batch_size=2)
    start = initial_stack(context, options)
    members = [stack_member(context, u, f, start, options, OFF) for u, f in zip(users, fusions, strict=True)]
    assert all(member.seed == 3 and member.schedule == stack_schedule(0, options, labels=False) for member in members)
    trainer = Trainer(base, members)
    list(trainer.train_steps())
    for n, own in enumerate(fit(context, users, options, fusions)):
        assert same(own.loras[0], trainer.stored_weights(n))
        assert own.bytes == 2 * own.loras[0].num_parameters


def test_it_is_trained_above_the_fusion(base: LoadedBase) -> None:
    user, context = a_user(random_rows([24] * 4)), late_context(base)
    fusion = (taught(base, user.rows),)
    options = replace(LORA, steps=20, learning_rate=5e-3)
    above = alone(context, user, options, fusion)
    assert mean_loss(base, user.rows, (*fusion, above)) < mean_loss(base, user.rows, fusion)
    assert not same(above, alone(context, user, options))


def test_company_changes_nothing_but_rounding(base: LoadedBase) -> None:
    users, context = [a_user(3), a_user(0, 1), a_user(1, 2)], late_context(base)
    found, again = (fit(context, users, LORA) for _ in range(2))
    assert found[1] == again[1] == UserStack()
    for n in (0, 2):
        assert same(found[n].loras[0], again[n].loras[0]) and found[n].bytes == again[n].bytes > 0
        assert difference(found[n].loras[0], alone(context, users[n], LORA)) < 2e-3


def test_epochs_decide_the_number_of_steps() -> None:
    options = replace(LORA, steps=99, batch_size=2, learning_rate=0.1)
    assert stack_schedule(5, options, labels=True) == Schedule(99, 2, 0.1)
    assert stack_schedule(5, replace(options, epochs=2), labels=True) == Schedule(6, 2, 0.1)


def test_a_user_without_shots_has_no_stack_and_has_not_failed(base: LoadedBase) -> None:
    context = late_context(base)
    assert fit(context, [a_user(0), a_user(0, 1)], LORA) == [UserStack(), UserStack()]
    assert fit(context, [], LORA) == []


@pytest.mark.parametrize(("steps", "rate"), [(1, 1e6), (1, float("nan")), (3, float("nan"))])
def test_a_training_that_fails_is_told(base: LoadedBase, steps: int, rate: float) -> None:
    """Numbers that float16 cannot hold, numbers that are not finite, and such a loss."""
    options = replace(LORA, steps=steps, learning_rate=rate)
    assert fit(late_context(base), [a_user(1), a_user(0, 1)], options) == [UserStack(failed=True), UserStack()]


def test_one_that_fails_leaves_the_others_alone(base: LoadedBase) -> None:
    users, context = [a_user(3), a_user(2, 1), a_user(2, 2)], late_context(base)
    anchor = context.anchors[0]
    broken = replace(anchor, factors={path: (a, b + float("nan")) for path, (a, b) in anchor.factors.items()})
    found, wanted = fit(context, users, LORA, [(), (broken,), ()]), fit(context, users, LORA)
    assert found[1] == UserStack(failed=True)
    for n in (0, 2):
        assert difference(found[n].loras[0], wanted[n].loras[0]) < 2e-3


def test_bytes_are_two_for_each_number(base: LoadedBase) -> None:
    """64 inputs; q has 64 outputs and v 32; late parts stand in one layer of seven modules, all parts in two layers."""
    for placement, layers in (("late", 1), ("all", 2)):
        (own,) = fit(a_context(base, 0), [a_user(1)], replace(LORA, placement=placement, rank=3))
        assert own.bytes == 2 * 3 * layers * (64 + 64 + 64 + 32)


def test_targets_that_the_base_lacks_are_refused(base: LoadedBase) -> None:
    with pytest.raises(UsageError, match="no_such"):
        fit(a_context(base, 0), [a_user(1)], replace(LORA, targets="no_such"))
