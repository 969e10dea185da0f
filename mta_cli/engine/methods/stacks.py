"""Everybody's own stack, a LoRA or a core, trained in one group on whatever frozen parts lie under it.

Where neighbours count beside its answers it is trained beside them. Knows no fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mta_cli.engine.lora.adapter import LoraWeights, init_lora_weights
from mta_cli.engine.lora.lora_xs import CoreKind, LoraXsCore, bank_basis
from mta_cli.engine.methods.label_priors import shot_examples
from mta_cli.engine.methods.method import MethodContext, Settings, UserShots, Value
from mta_cli.engine.training.trainer import GroupMember, Schedule, Trainer
from mta_cli.errors import IntegrityFault

LORA_SETTINGS: dict[str, Value] = {
    "rank": 2,
    "alpha": 4.0,
    "targets": "q_proj,v_proj",
    "placement": "late",
    "steps": 10,
    "batch_size": 8,
    "learning_rate": 2e-3,
}
LORA_GRID = tuple({"steps": steps, "learning_rate": rate} for steps, rate in ((10, 1e-3), (10, 2e-3), (10, 5e-3)))
CORE_SETTINGS: dict[str, Value] = {"rank": 2, "steps": 10, "batch_size": 8, "learning_rate": 0.1, "pull": 0.1}
AUTO_LEARNING_RATE = 0.0  # a core's learning rate: that of labels or of texts
LABEL_LEARNING_RATE, TEXT_LEARNING_RATE = 0.03, 0.1

FrozenLorasByUser = Sequence[tuple[LoraWeights, ...]]


@dataclass(frozen=True)
class UserStack:
    """Somebody's own stack as the store gives it back, and the bytes that it is kept in.

    No part where there are no shots, or where training on them came to no finite weights; then it `failed`.
    """

    lora: LoraWeights | None = None
    bytes: int = 0
    failed: bool = False

    @property
    def loras(self) -> tuple[LoraWeights, ...]:
        """The stack, or nothing."""
        return (self.lora,) if self.lora is not None else ()


FitStacks = Callable[[MethodContext, Sequence[UserShots], FrozenLorasByUser, Settings], list[UserStack]]


def fit_loras(
    bench: MethodContext,
    people: Sequence[UserShots],
    under: FrozenLorasByUser,
    settings: Settings,
    *,
    frozen_a: bool = False,
) -> list[UserStack]:
    """A LoRA for each of `people` above `under`, by the `settings` in `OWN`, in float16.

    `epochs`, where it is among the settings and not 0, stands instead of `steps`. With `frozen_a` everybody's A is the
    one that the bench's seed gives.
    """
    start = init_lora_weights(
        bench.base.model,
        str(settings["targets"]),
        str(settings["placement"]),
        int(settings["rank"]),
        float(settings["alpha"]),
        bench.seed,
    )
    return [
        UserStack(part, 2 * part.num_parameters if part is not None else 0, part is None and bool(person.rows))
        for person, part in zip(people, _train_group(bench, people, under, start, settings, frozen_a), strict=True)
    ]


def fit_cores(
    bench: MethodContext,
    people: Sequence[UserShots],
    under: FrozenLorasByUser,
    settings: Settings,
    *,
    kind: CoreKind = "core",
) -> list[UserStack]:
    """Numbers between the bank's main directions for each of `people` above `under`, by the `settings` in `CORES`.

    A `learning_rate` of `BY_TASK` is `LABEL_RATE` in a task of labels, else `TEXT_RATE`. Kept in float16. Nothing where
    the bank has no directions.
    """
    by_task = LABEL_LEARNING_RATE if bench.task.labels else TEXT_LEARNING_RATE
    settings = {**settings, "learning_rate": float(settings["learning_rate"]) or by_task}
    basis = bank_basis(bench.anchors, int(settings["rank"]))
    if basis is None:
        return [UserStack() for _ in people]
    start = LoraXsCore(basis, kind, float(settings["pull"]))
    return [
        UserStack(part, 2 * start.num_parameters if part is not None else 0, part is None and bool(person.rows))
        for person, part in zip(people, _train_group(bench, people, under, start, settings), strict=True)
    ]


def _train_group(
    bench: MethodContext,
    people: Sequence[UserShots],
    under: FrozenLorasByUser,
    start: LoraWeights | LoraXsCore,
    settings: Settings,
    frozen_a: bool = False,
) -> list[LoraWeights | None]:
    able = [i for i, person in enumerate(people) if person.rows]
    found: list[LoraWeights | None] = [None] * len(people)
    if not able:
        return found
    members = [
        GroupMember(
            start, shot_examples(bench, one, settings), _schedule(len(one.rows), settings), bench.seed, under[i]
        )
        for i in able
        for one in (people[i],)
    ]
    trainer = Trainer(bench.base, members, frozen_a=frozen_a)
    for _ in trainer.train_steps():
        pass
    for place, i in enumerate(able):
        if place not in trainer.failed:
            with suppress(IntegrityFault):  # a number that float16 cannot hold
                found[i] = trainer.stored_weights(place)
    return found


def _schedule(rows: int, settings: Settings) -> Schedule:
    size, rate = int(settings["batch_size"]), float(settings["learning_rate"])
    if epochs := int(settings.get("epochs", 0)):
        return Schedule.from_epochs(rows, epochs, size, rate)
    return Schedule(int(settings["steps"]), size, rate)
