"""Cores through the same loop as LoRAs: what a plain loop gives, in any company, stopped and gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mta_cli.engine.lora.adapter import LoraWeights
from mta_cli.engine.lora.lora_xs import LoraXsCore, bank_basis, unpack_core
from mta_cli.engine.model.load import LoadedBase
from mta_cli.engine.scoring.prefix_tree import PromptTree
from mta_cli.engine.training.trainer import MAX_GRAD_NORM, GroupMember, Schedule, Trainer, epoch_batches
from mta_cli.errors import IntegrityFault
from tests.engine.lora_cases import difference, random_lora, random_rows
from tests.engine.slow import slow_values
from tests.engine.training.test_trainer import SCHEDULE, fresh, group


def a_core(base: LoadedBase, placement: str) -> LoraXsCore:
    basis = bank_basis([random_lora(base.model, seed, placement=placement) for seed in range(3)], 2)
    assert basis is not None
    return LoraXsCore(basis, pull=0.1)


def core_group(base: LoadedBase, placement: str, *, under: bool = True) -> list[GroupMember]:
    """The people of `group` with a core each, at a rate that suits cores."""
    core = a_core(base, placement)
    return [
        replace(member, initial_weights=core, schedule=replace(member.schedule, learning_rate=0.1))
        for member in group(base, placement, under=under)
    ]


def plain_numbers(base: LoadedBase, member: GroupMember) -> tuple[torch.Tensor, list[float]]:
    """A core's numbers, and the loss of each step, from PyTorch's own Adam, one row at a time, nothing batched."""
    assert isinstance(member.initial_weights, LoraXsCore)
    core, schedule = member.initial_weights, member.schedule
    numbers = torch.zeros(core.num_parameters, requires_grad=True)
    optimizer, losses = torch.optim.Adam([numbers]), list[float]()
    for step, batch in enumerate(batches_of(member)):
        part = LoraWeights(core.factors(numbers), 1.0, core.basis.placement)
        values = [
            slow_values(base, PromptTree.from_row(member.examples[i]), (*member.frozen_loras, part))[0] for i in batch
        ]
        loss = -torch.cat(values).mean()
        optimizer.zero_grad()
        (loss + core.pull * numbers.square().mean()).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([numbers], MAX_GRAD_NORM)
        optimizer.param_groups[0]["lr"] = schedule.learning_rate_at(step)
        optimizer.step()
        losses.append(float(loss.detach()))
    return numbers.detach(), losses


def batches_of(member: GroupMember) -> Sequence[list[int]]:
    """The batches of all of a member's steps."""
    size, steps = member.schedule.batch_size, member.schedule.steps
    epochs = (epoch_batches(member.examples, size, member.seed, epoch) for epoch in range(steps))
    return [batch for batches in epochs for batch in batches][:steps]


@pytest.mark.parametrize("placement", ["all", "late"])
def test_cores_train_as_a_plain_loop_trains_them(base: LoadedBase, placement: str) -> None:
    """Warm-up, decay, batches, clipping, pull and moments; each of the four by a schedule of their own."""
    members = core_group(base, placement)
    trainer = Trainer(base, members)
    list(trainer.train_steps())
    for i, member in enumerate(members):
        numbers, losses = plain_numbers(base, member)
        assert isinstance(member.initial_weights, LoraXsCore)
        assert [step.loss for step in trainer.completed_steps[i]] == pytest.approx(losses, abs=1e-5)
        assert difference(trainer.weights(i), member.initial_weights.to_lora(numbers)) < 1e-4


@pytest.mark.parametrize("budget", [16, 4096])
def test_company_changes_nothing_for_cores(base: LoadedBase, budget: int) -> None:
    members = core_group(base, "late")
    together = Trainer(base, members, budget=budget)
    list(together.train_steps())
    assert [len(taken) for taken in together.completed_steps] == [3, 4, 5, 6]
    for i, member in enumerate(members):
        alone = Trainer(base, [member])
        list(alone.train_steps())
        assert difference(together.weights(i), alone.weights(0)) < 1e-4


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_stopped_cores_go_on_with_the_same_bytes(base: LoadedBase, stop: int) -> None:
    """Stopped where all of the four have steps left, two of them, and one."""
    members = core_group(base, "late")
    whole, first, second = (Trainer(base, members) for _ in range(3))
    list(whole.train_steps())
    for _ in zip(range(stop), first.train_steps(), strict=False):
        pass
    second.load_state(first.save_state())
    assert [len(taken) for taken in second.completed_steps] == [min(stop, 3 + i) for i in range(4)]
    list(second.train_steps())
    for i in range(len(members)):
        assert second.packed_core(i) == whole.packed_core(i)
        assert (first.packed_core(i) == whole.packed_core(i)) == (stop >= 3 + i)
        assert second.weights(i).to_bytes({}) == whole.weights(i).to_bytes({})
        assert [step.loss for step in second.completed_steps[i]] == [step.loss for step in whole.completed_steps[i]]


def test_a_core_that_fails_is_named_and_leaves_the_others_alone(base: LoadedBase) -> None:
    members = core_group(base, "upper", under=False)
    expected = Trainer(base, members)
    list(expected.train_steps())
    (sound,) = group(base, "upper", under=True)[1].frozen_loras
    factors = {path: (a, torch.full_like(b, float("nan"))) for path, (a, b) in sound.factors.items()}
    members[1] = replace(members[1], frozen_loras=(replace(sound, factors=factors),))
    trainer = Trainer(base, members)
    list(trainer.train_steps())
    assert list(trainer.failed) == [1] and "step 1" in trainer.failed[1] and "nan" in trainer.failed[1]
    assert [len(taken) for taken in trainer.completed_steps] == [3, 0, 5, 6]
    for i in (0, 2, 3):
        assert difference(trainer.weights(i), expected.weights(i)) < 1e-4
    again = Trainer(base, members)
    again.load_state(trainer.save_state())
    assert again.failed == trainer.failed and list(again.train_steps()) == []


def test_checkpoints_of_cores_and_of_loras_are_not_each_others(base: LoadedBase) -> None:
    cores, loras = core_group(base, "late"), group(base, "late", under=True)
    for members, others in ((cores, loras), (loras, cores)):
        trainer, other = Trainer(base, members), Trainer(base, others)
        with pytest.raises((ValueError, KeyError)):
            trainer.load_state(other.save_state())


def test_what_is_kept_of_a_member_is_what_is_given_back(base: LoadedBase) -> None:
    """Of a core its numbers; of a LoRA the float16 of its factors, which have a file of their own."""
    cores, loras = core_group(base, "late"), group(base, "late", under=True)
    for members in (cores, loras):
        trainer = Trainer(base, members)
        list(trainer.train_steps())
        for i, member in enumerate(members):
            stored, packed = trainer.stored_weights(i), trainer.packed_core(i)
            assert (packed is None) == (members is loras)
            if isinstance(member.initial_weights, LoraXsCore) and packed is not None:
                assert len(packed) == 2 * member.initial_weights.num_parameters
                wanted = unpack_core(member.initial_weights.basis, packed)
            else:
                wanted = trainer.weights(i).cast_for_storage()
            assert stored.to_bytes({}) == wanted.to_bytes({})


def test_numbers_that_a_store_cannot_hold_are_said(base: LoadedBase) -> None:
    """One step at an absurd rate leaves numbers that float32 holds and float16 does not."""
    for members in (core_group(base, "late"), group(base, "late", under=True)):
        trainer = Trainer(base, [replace(members[0], schedule=Schedule(1, 3, 1e6))])
        list(trainer.train_steps())
        assert trainer.failed == {} and torch.isfinite(torch.tensor(trainer.weights(0).norm()))
        with pytest.raises(IntegrityFault, match="not finite"):
            trainer.stored_weights(0)


def test_a_group_is_of_one_kind(base: LoadedBase) -> None:
    rows, basis = random_rows([12, 14]), random_lora(base.model, 0, placement="upper")
    lora, core = GroupMember(fresh(base), rows, SCHEDULE, 0), GroupMember(LoraXsCore(basis), rows, SCHEDULE, 0)
    for members in ([lora, core], [core, lora], [core, GroupMember(LoraXsCore(basis), rows, SCHEDULE, 0)]):
        with pytest.raises(ValueError, match="one and the same core"):
            Trainer(base, members)
