"""Everybody's own LoRA, trained in one group on whatever frozen parts lie under it. Knows no fusion and no bytes."""

from collections.abc import Sequence
from contextlib import suppress

from mta_cli.engine.lora import LoraWeights, initial
from mta_cli.engine.methods.shape import Bench, Person, Settings, Value
from mta_cli.engine.train import Member, Schedule, Trainer
from mta_cli.errors import IntegrityFault

OWN: dict[str, Value] = {
    "rank": 2, "alpha": 4.0, "targets": "q_proj,v_proj", "placement": "late", "steps": 10, "batch_size": 8,
    "learning_rate": 2e-3,
}  # fmt: skip


def train_stacks(
    bench: Bench,
    people: Sequence[Person],
    under: Sequence[tuple[LoraWeights, ...]],
    *,
    rank: int,
    alpha: float,
    targets: str,
    placement: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    epochs: int = 0,
    frozen_a: bool = False,
) -> list[LoraWeights | None]:
    """A LoRA for each of `people` on their rows, above `under`, as a float16 file gives it back.

    `epochs`, where it is not 0, stands instead of `steps`. With `frozen_a` everybody's A is the one that the bench's
    seed gives. None for those who have no rows or whose training failed.
    """
    start = initial(bench.base.model, targets, placement, rank, alpha, bench.seed)
    able = [i for i, person in enumerate(people) if person.rows]
    members = []
    for i in able:
        rows = people[i].rows
        by_epochs = Schedule.epochs(len(rows), epochs, batch_size, learning_rate)
        schedule = by_epochs if epochs else Schedule(steps, batch_size, learning_rate)
        members.append(Member(start, rows, schedule, bench.seed, under[i]))
    found: list[LoraWeights | None] = [None] * len(people)
    if not members:
        return found
    trainer = Trainer(bench.base, members, frozen_a=frozen_a)
    for _ in trainer.steps():
        pass
    for place, i in enumerate(able):
        if place not in trainer.failed:
            with suppress(IntegrityFault):  # a number that float16 cannot hold
                found[i] = trainer.weights(place).stored()
    return found


def stacks_as(
    bench: Bench,
    people: Sequence[Person],
    under: Sequence[tuple[LoraWeights, ...]],
    settings: Settings,
    *,
    frozen_a: bool = False,
) -> list[LoraWeights | None]:
    """`train_stacks` with the values of `settings` under the names of `OWN`, and `epochs` where it is among them."""
    return train_stacks(
        bench, people, under, rank=int(settings["rank"]), alpha=float(settings["alpha"]),
        targets=str(settings["targets"]), placement=str(settings["placement"]), steps=int(settings["steps"]),
        batch_size=int(settings["batch_size"]), learning_rate=float(settings["learning_rate"]),
        epochs=int(settings.get("epochs", 0)), frozen_a=frozen_a,
    )  # fmt: skip


def lost(person: Person, stack: LoraWeights | None) -> bool:
    """Whether somebody's training failed."""
    return stack is None and bool(person.rows)


def stack_bytes(stack: LoraWeights | None) -> int:
    """What a stack takes in float16."""
    return 2 * stack.parameters if stack is not None else 0
