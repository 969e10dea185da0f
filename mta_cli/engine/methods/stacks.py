"""Everybody's own stack, a LoRA or a core, trained in one group on whatever frozen parts lie under it.

Where neighbours count beside its answers it is trained beside them. Knows no fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mta_cli.engine.lora.adapter import LoraWeights, initial
from mta_cli.engine.lora.lora_xs import Core, Kind, bank_basis
from mta_cli.engine.methods.label_priors import taught
from mta_cli.engine.methods.method import Bench, Person, Settings, Value
from mta_cli.engine.training.trainer import Member, Schedule, Trainer
from mta_cli.errors import IntegrityFault

OWN: dict[str, Value] = {
    "rank": 2,
    "alpha": 4.0,
    "targets": "q_proj,v_proj",
    "placement": "late",
    "steps": 10,
    "batch_size": 8,
    "learning_rate": 2e-3,
}
LORA_GRID = tuple({"steps": steps, "learning_rate": rate} for steps, rate in ((10, 1e-3), (10, 2e-3), (10, 5e-3)))
CORES: dict[str, Value] = {"rank": 2, "steps": 10, "batch_size": 8, "learning_rate": 0.1, "pull": 0.1}
BY_TASK = 0.0  # a core's learning rate: that of labels or of texts
LABEL_RATE, TEXT_RATE = 0.03, 0.1

Under = Sequence[tuple[LoraWeights, ...]]


@dataclass(frozen=True)
class Own:
    """Somebody's own stack as the store gives it back, and the bytes that it is kept in.

    No part where there are no shots, or where training on them came to no finite weights; then it `failed`.
    """

    part: LoraWeights | None = None
    bytes: int = 0
    failed: bool = False

    @property
    def parts(self) -> tuple[LoraWeights, ...]:
        """The stack, or nothing."""
        return (self.part,) if self.part is not None else ()


Fit = Callable[[Bench, Sequence[Person], Under, Settings], list[Own]]


def loras(
    bench: Bench, people: Sequence[Person], under: Under, settings: Settings, *, frozen_a: bool = False
) -> list[Own]:
    """A LoRA for each of `people` above `under`, by the `settings` in `OWN`, in float16.

    `epochs`, where it is among the settings and not 0, stands instead of `steps`. With `frozen_a` everybody's A is the
    one that the bench's seed gives.
    """
    start = initial(
        bench.base.model,
        str(settings["targets"]),
        str(settings["placement"]),
        int(settings["rank"]),
        float(settings["alpha"]),
        bench.seed,
    )
    return [
        Own(part, 2 * part.parameters if part is not None else 0, part is None and bool(person.rows))
        for person, part in zip(people, _trained(bench, people, under, start, settings, frozen_a), strict=True)
    ]


def cores(
    bench: Bench, people: Sequence[Person], under: Under, settings: Settings, *, kind: Kind = "core"
) -> list[Own]:
    """Numbers between the bank's main directions for each of `people` above `under`, by the `settings` in `CORES`.

    A `learning_rate` of `BY_TASK` is `LABEL_RATE` in a task of labels, else `TEXT_RATE`. Kept in float16. Nothing where
    the bank has no directions.
    """
    by_task = LABEL_RATE if bench.task.labels else TEXT_RATE
    settings = {**settings, "learning_rate": float(settings["learning_rate"]) or by_task}
    basis = bank_basis(bench.anchors, int(settings["rank"]))
    if basis is None:
        return [Own() for _ in people]
    start = Core(basis, kind, float(settings["pull"]))
    return [
        Own(part, 2 * start.count if part is not None else 0, part is None and bool(person.rows))
        for person, part in zip(people, _trained(bench, people, under, start, settings), strict=True)
    ]


def _trained(
    bench: Bench,
    people: Sequence[Person],
    under: Under,
    start: LoraWeights | Core,
    settings: Settings,
    frozen_a: bool = False,
) -> list[LoraWeights | None]:
    able = [i for i, person in enumerate(people) if person.rows]
    found: list[LoraWeights | None] = [None] * len(people)
    if not able:
        return found
    members = [
        Member(start, taught(bench, one, settings), _schedule(len(one.rows), settings), bench.seed, under[i])
        for i in able
        for one in (people[i],)
    ]
    trainer = Trainer(bench.base, members, frozen_a=frozen_a)
    for _ in trainer.steps():
        pass
    for place, i in enumerate(able):
        if place not in trainer.failed:
            with suppress(IntegrityFault):  # a number that float16 cannot hold
                found[i] = trainer.stored(place)
    return found


def _schedule(rows: int, settings: Settings) -> Schedule:
    size, rate = int(settings["batch_size"]), float(settings["learning_rate"])
    if epochs := int(settings.get("epochs", 0)):
        return Schedule.epochs(rows, epochs, size, rate)
    return Schedule(int(settings["steps"]), size, rate)
