"""Training: equal to PEFT and to a plain loop, exact after a resumption, right at the labelled positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights, merge_into_base
from mta_cli.engine.lora.batched import TrainableLoras
from mta_cli.engine.model.load import LoadedBase, MemoryLimits
from mta_cli.engine.text.prompts import TrainingRow
from mta_cli.engine.training.trainer import MAX_GRAD_NORM, GroupMember, Schedule, Trainer, epoch_batches
from mta_cli.errors import BadInput, UsageError
from tests.engine.likelihoods import mean_loss
from tests.engine.lora_cases import difference, random_lora, random_rows

SCHEDULE = Schedule(steps=6, batch_size=3, learning_rate=5e-3)


def fresh(base: LoadedBase) -> LoraWeights:
    return init_lora_weights(base.model, "all-linear", "all", 4, 8.0, 0)


def alone(base: LoadedBase, rows: list[TrainingRow], schedule: Schedule = SCHEDULE, seed: int = 0) -> Trainer:
    return Trainer(base, [GroupMember(fresh(base), rows, schedule, seed)])


def test_equal_to_peft(base: LoadedBase, tiny_base_path: Path) -> None:
    """Same initial weights and data: the same losses, and the same ΔW to 1e-5, as PEFT trained by a plain loop."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    rows, start = random_rows([30, 25, 40, 18, 33, 29, 21]), fresh(base)
    trainer = alone(base, rows, seed=3)
    ours = [step[0].loss for step in trainer.train_steps()]
    weights = trainer.weights(0)

    plain = AutoModelForCausalLM.from_pretrained(tiny_base_path, dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.0)
    model = get_peft_model(plain, config)
    layers = {path: model.get_submodule(f"base_model.model.{path}") for path in start.factors}
    with torch.no_grad():
        for path, (a, b) in start.factors.items():
            layers[path].lora_A["default"].weight.copy_(a)
            layers[path].lora_B["default"].weight.copy_(b)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=SCHEDULE.learning_rate, weight_decay=0.0)
    theirs, batches = [], [*epoch_batches(rows, 3, 3, 0), *epoch_batches(rows, 3, 3, 1)]
    for step, batch in enumerate(batches):
        total, count = torch.zeros(()), 0
        for row in (rows[i] for i in batch):  # one row at a time: no padding, all logits, shifted labels
            ids = torch.tensor([row.input_ids])
            labels = ids.clone()
            labels[0, : row.answer_start] = -100
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
            count += len(row.input_ids) - row.answer_start
        (total / count).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
        optimizer.param_groups[0]["lr"] = SCHEDULE.learning_rate_at(step)
        optimizer.step()
        optimizer.zero_grad()
        theirs.append(total.item() / count)

    assert ours == pytest.approx(theirs, abs=1e-5)
    for path in start.factors:
        layer = layers[path]
        delta = 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        assert torch.allclose(weights.delta_weight(path), delta, atol=1e-5)
        assert float(delta.detach().norm()) > 1e-3


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stopped_and_resumed_gives_the_same_bytes(base: LoadedBase, stop: int) -> None:
    rows = random_rows([20, 31, 17, 26, 22, 19, 28, 30])
    trainer = alone(base, rows, seed=5)
    whole = [step[0].loss for step in trainer.train_steps()]
    expected = trainer.weights(0).to_bytes({})
    trainer = alone(base, rows, seed=5)
    steps = trainer.train_steps()
    for _ in range(stop):
        next(steps)
    state = trainer.save_state()
    trainer = alone(base, rows, seed=5)
    trainer.load_state(state)
    assert len(trainer.completed_steps[0]) == stop
    list(trainer.train_steps())
    assert [step.loss for step in trainer.completed_steps[0]] == whole
    assert trainer.weights(0).to_bytes({}) == expected


def test_a_checkpoint_of_another_training_is_refused(base: LoadedBase) -> None:
    rows = random_rows([20, 20])
    other = Trainer(base, [GroupMember(init_lora_weights(base.model, "q_proj", "all", 2, 4, 0), rows, SCHEDULE, 0)])
    with pytest.raises((ValueError, KeyError)):
        alone(base, rows).load_state(other.save_state())


def test_training_learns_and_leaves_the_base_alone(base: LoadedBase) -> None:
    rows = random_rows([24] * 6)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    untrained = mean_loss(base, rows)
    trainer = alone(base, rows, Schedule(60, 6, 2e-2))
    list(trainer.train_steps())
    after = base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    with merge_into_base(base, trainer.weights(0)):
        assert mean_loss(base, rows) < 0.5 * untrained
    assert mean_loss(base, rows, (trainer.weights(0),)) < 0.5 * untrained


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own() -> None:
    rows = random_rows([10 + i % 7 for i in range(23)])
    first, second = (epoch_batches(rows, 4, 0, epoch) for epoch in (0, 1))
    for batches in (first, second):
        assert sorted(i for batch in batches for i in batch) == list(range(23))
    assert first != second and first == epoch_batches(rows, 4, 0, 0)


def test_the_learning_rate_warms_up_and_decays() -> None:
    schedule = Schedule(100, 1, 1.0)
    rates = [schedule.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.01
    assert Schedule.from_epochs(17, 2, 8, 1.0).steps == 6


def test_an_exploding_loss_stops_the_training(base: LoadedBase) -> None:
    trainer = alone(base, random_rows([12, 12]))
    stacked_loras(trainer).trainable[0].fill_(float("nan"))
    list(trainer.train_steps())
    assert "step 1" in trainer.failed[0] and trainer.completed_steps == [[]]


def test_one_who_fails_leaves_the_others_alone(base: LoadedBase) -> None:
    members = group(base, "upper", under=True)
    expected, trainer = Trainer(base, members), Trainer(base, members)
    list(expected.train_steps())
    for value in stacked_loras(trainer).trainable:
        value[1].fill_(float("inf"))
    list(trainer.train_steps())
    assert list(trainer.failed) == [1]
    for i in (0, 2, 3):
        assert difference(trainer.weights(i), expected.weights(i)) < 1e-5


def test_a_stopped_group_goes_on_with_the_same_bytes(base: LoadedBase) -> None:
    members = group(base, "late", under=True)
    whole, first, second = (Trainer(base, members) for _ in range(3))
    list(whole.train_steps())
    for _ in zip(range(4), first.train_steps(), strict=False):  # the shortest schedule has ended by then
        pass
    second.load_state(first.save_state())
    assert [len(taken) for taken in second.completed_steps] == [3, 4, 4, 4]
    list(second.train_steps())
    for i in range(len(members)):
        assert second.weights(i).to_bytes({}) == whole.weights(i).to_bytes({})


def group(base: LoadedBase, placement: str, *, under: bool) -> list[GroupMember]:
    """Four people with histories, schedules and frozen parts of different size."""
    members = []
    for i, count in enumerate((3, 7, 5, 9)):
        start = init_lora_weights(base.model, "q_proj,v_proj,down_proj", placement, 3, 6.0, i)
        rows = random_rows([14 + (7 * i + 5 * n) % 31 for n in range(count)], seed=i)
        frozen = (random_lora(base.model, 50 + i, rank=2 + i, placement=placement),) if under else ()
        members.append(GroupMember(start, rows, Schedule(3 + i, 2 + i % 2, 5e-3), i, frozen))
    return members


def lora_of(member: GroupMember) -> LoraWeights:
    """What a member of a group of LoRAs begins with."""
    assert isinstance(member.initial_weights, LoraWeights)
    return member.initial_weights


def stacked_loras(trainer: Trainer) -> TrainableLoras:
    """What a training of LoRAs trains."""
    assert isinstance(trainer._group, TrainableLoras)
    return trainer._group


@pytest.mark.parametrize("under", [False, True])
@pytest.mark.parametrize("placement", ["all", "upper", "late"])
@pytest.mark.parametrize("budget", [64, 4096])
def test_company_changes_nothing(base: LoadedBase, placement: str, under: bool, budget: int) -> None:
    """Each person's ΔW from a group equals the one trained alone, relative difference below 1e-5 in float32.

    Of these four one may be further off: Adam divides a gradient by itself, so where one number of so few has a
    gradient that is little more than rounding, it moves by a visible share of a step.
    """
    members = group(base, placement, under=under)
    together = Trainer(base, members, budget=budget)
    losses: dict[int, list[float]] = {i: [] for i in range(len(members))}
    for steps in together.train_steps():
        for i, step in steps.items():
            losses[i].append(step.loss)
    off = []
    for i, member in enumerate(members):
        trainer = Trainer(base, [member])
        assert [step[0].loss for step in trainer.train_steps()] == pytest.approx(losses[i], abs=1e-5)
        off.append(difference(together.weights(i), trainer.weights(0)))
    assert sorted(off)[-2] < 1e-5 and max(off) < 1e-4


def test_order_and_absence_of_others_change_nothing(base: LoadedBase) -> None:
    members = group(base, "upper", under=True)
    forwards, backwards = Trainer(base, members), Trainer(base, members[::-1])
    list(forwards.train_steps()), list(backwards.train_steps())
    for i, member in enumerate(members):
        for path in lora_of(member).factors:
            expected = forwards.weights(i).delta_weight(path)
            assert torch.allclose(
                backwards.weights(len(members) - 1 - i).delta_weight(path), expected, rtol=1e-4, atol=1e-7
            )


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = group(base, "upper", under=False)
    expected = Trainer(base, members)
    list(expected.train_steps())
    trainer = Trainer(base, members, budget=4096)
    real = trainer._scorer.score_rows

    def small(chosen, factors):  # type: ignore[no-untyped-def]
        if len(chosen) > 3:
            raise torch.OutOfMemoryError("not enough")
        return real(chosen, factors)

    monkeypatch.setattr(trainer._scorer, "score_rows", small)
    list(trainer.train_steps())
    assert trainer.budget.tokens < 4096
    for path in lora_of(members[0]).factors:
        assert torch.allclose(
            trainer.weights(2).delta_weight(path), expected.weights(2).delta_weight(path), rtol=1e-4, atol=1e-7
        )


def test_one_row_that_never_fits_is_said(base: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = alone(base, random_rows([12, 12]))

    def full(chosen, factors):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("not enough")

    monkeypatch.setattr(trainer._scorer, "score_rows", full)
    with pytest.raises(BadInput, match="does not fit"):
        list(trainer.train_steps())


def kept_bytes(trainer: Trainer) -> int:
    """The bytes that are kept for a training's backward passes in all; what a layer computes again is not kept."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        list(trainer.train_steps())
    return kept


@pytest.mark.parametrize("placement", ["all", "late"])
def test_rows_longer_than_a_pass_may_be_are_computed_again_and_give_the_same_bytes(
    base: LoadedBase, placement: str
) -> None:
    members = group(base, placement, under=False)
    usual = Trainer(base, members, budget=4)
    limited = Trainer(replace(base, limits=MemoryLimits(batch_tokens=4)), members)
    assert kept_bytes(limited) < kept_bytes(usual) / 4
    assert all(map(torch.equal, stacked_loras(usual).trainable, stacked_loras(limited).trainable))
    roomy = Trainer(replace(base, limits=MemoryLimits(batch_tokens=64)), members)
    assert kept_bytes(roomy) == kept_bytes(Trainer(base, members, budget=64))


def test_one_row_that_fits_only_without_its_layers_is_trained(
    base: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows([12, 12])
    expected, trainer = alone(base, rows), alone(base, rows)
    list(expected.train_steps())
    decoder, real = base.llama_decoder, trainer._scorer.score_rows
    assert decoder is not None

    def small(chosen, factors):  # type: ignore[no-untyped-def]
        if len(chosen) > 1 or not decoder._recomputes_layers:
            raise torch.OutOfMemoryError("not enough")
        return real(chosen, factors)

    monkeypatch.setattr(trainer._scorer, "score_rows", small)
    list(trainer.train_steps())
    assert difference(trainer.weights(0), expected.weights(0)) < 1e-5
    assert not decoder._recomputes_layers


def test_a_base_without_a_plain_decoder_trains_the_same(base: LoadedBase) -> None:
    members = group(base, "upper", under=True)
    slow = replace(base, llama_decoder=None)
    ours, theirs = Trainer(base, members), Trainer(slow, members)
    list(ours.train_steps()), list(theirs.train_steps())
    for i, member in enumerate(members):
        for path in lora_of(member).factors:
            expected = theirs.weights(i).delta_weight(path)
            assert torch.allclose(ours.weights(i).delta_weight(path), expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(UsageError, match="fast path"):
        Trainer(slow, group(base, "late", under=False))
