"""What a group's training does on its device: losses before, steps, losses after.

Touches neither the store nor the terminal, so that it may run in a thread of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import IntegrityFault

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.lora.lora_xs import Core
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.training.trainer import Member, Trainer, TrainStep
    from mta_cli.pipeline.training.groups import AdapterJob, Group

CHECKPOINT_SECONDS = 15.0
CHECKPOINT_SHARE = 10  # a checkpoint comes no sooner than so many times the time that the last one took
EXPLODED = 1.0  # nats per token: a loss that rose by more than this, and to more than twice what it was, is no training
PROBE = 64  # about as many rows, evenly taken, on which the loss is measured before and after


@dataclass(frozen=True)
class Begun:
    """The group may take its next step; `taken` are its steps so far. `fits`: the checkpoint, if any, was its own."""

    taken: int
    fits: bool


@dataclass(frozen=True)
class Stepped:
    """The step of every member who took one; `state` is a checkpoint where one is due."""

    steps: dict[int, TrainStep]
    state: bytes | None


@dataclass(frozen=True)
class Trained:
    """What came of a group, by member: the weights as their files will give them back, or why one failed.

    `numbers`: what is kept of each core. `first` and `last` are mean losses on the probes (nats per labelled token or
    choice); `before` and `after` what the group's own `measure` found, one for each member, and nothing where it has
    none.
    """

    weights: dict[int, LoraWeights]
    numbers: dict[int, bytes]
    failed: dict[int, str]
    taken: list[list[TrainStep]]
    first: list[float | None]
    last: dict[int, float | None]
    before: list[Any]
    after: list[Any]


Report = Begun | Stepped | Trained


def exploded(before: float | None, after: float | None) -> str | None:
    """Why weights are not worth keeping, by mean losses on their own rows: no number, or far worse than none at all."""
    if before is None or after is None:
        return None
    if math.isfinite(after) and after <= before + max(before, EXPLODED):
        return None
    return f"loss {before:.3g} before and {after:.3g} after the training"


class Lesson:
    """The training of one group on one base, from `saved`, a checkpoint, where there is one."""

    def __init__(self, base: LoadedBase, group: Group, saved: bytes | None) -> None:
        self.base, self.group = base, group
        self._saved = saved
        self._leaving: dict[int, str] = {}
        self._trainer: Trainer | None = None

    def reports(self) -> Iterator[Report]:
        """Train: one `Begun`, a `Stepped` for every step, one `Trained`. Raises as `Trainer.steps`."""
        from mta_cli.engine.scoring.log_likelihood import mean_losses
        from mta_cli.engine.training.trainer import Trainer

        trainings = self.group.trainings
        before = self._measured([()] * len(trainings))
        members = self._members()
        probes = [t.rows[:: max(1, len(t.rows) // PROBE)] for t in trainings]
        self._trainer = trainer = Trainer(self.base, members)
        # A fresh part adds nothing yet, but with it these passes begin where training's do, and share their states.
        fresh = [(*member.under, trainer.weights(i)) for i, member in enumerate(members)]
        first = mean_losses(self.base, list(zip(probes, fresh, strict=True)))
        yield self._begun(trainer)
        yield from self._steps(trainer)
        weights = self._finite(trainer)
        last = mean_losses(self.base, [(probes[i], (*members[i].under, own)) for i, own in weights.items()])
        ends = dict(zip(weights, last, strict=True))
        for i, end in ends.items():
            if (fault := exploded(first[i], end)) is not None:
                trainer.failed[i] = fault
                del weights[i]
        packed = {i: numbers for i in weights if (numbers := trainer.packed(i)) is not None}
        after = self._measured([(weights[i],) if i in weights else () for i in range(len(members))])
        yield Trained(weights, packed, trainer.failed, trainer.taken, first, ends, before, after)

    def state(self) -> bytes | None:
        """A checkpoint; None before `Begun`. Only between two reports, and while no thread goes on to the next."""
        if self._trainer is None:
            return None
        self._part(self._trainer)
        return self._trainer.state()

    def leave(self, member: int, why: str) -> None:
        """End a member's training at the next report, from any thread; it then counts as failed."""
        self._leaving[member] = why

    def _part(self, trainer: Trainer) -> None:
        while self._leaving:
            trainer.leave(*self._leaving.popitem())

    def _members(self) -> list[Member]:
        from mta_cli.engine.training.trainer import Member

        core = self._core()
        return [
            Member(core or self._lora(one.job), one.rows, one.job.schedule, one.job.seed, one.under)
            for one in self.group.trainings
        ]

    def _core(self) -> Core | None:
        """What everybody's numbers stand in, where the group has a basis."""
        from mta_cli.engine.lora.lora_xs import Core, narrowed

        basis, job = self.group.basis, self.group.jobs[0]
        return Core(narrowed(basis.weights, job.rank), pull=job.pull) if basis is not None else None

    def _lora(self, job: AdapterJob) -> LoraWeights:
        from mta_cli.engine.lora.adapter import initial

        return initial(self.base.model, job.targets, job.placement, job.rank, job.alpha, job.seed)

    def _begun(self, trainer: Trainer) -> Begun:
        saved, self._saved = self._saved, None
        fits = True
        if saved is not None:
            try:
                trainer.resume(saved)
            except (ValueError, KeyError):
                fits = False
        return Begun(sum(len(taken) for taken in trainer.taken), fits)

    def _steps(self, trainer: Trainer) -> Iterator[Stepped]:
        saved, pause = time.monotonic(), CHECKPOINT_SECONDS
        for steps in trainer.steps():
            due = (now := time.monotonic()) - saved > pause
            yield Stepped(steps, trainer.state() if due else None)
            self._part(trainer)
            if due:
                saved = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * (saved - now))

    def _finite(self, trainer: Trainer) -> dict[int, LoraWeights]:
        """Everybody's weights as their files give them back; whoever's are not finite there is failed."""
        found = {}
        for i in range(len(trainer.members)):
            if i in trainer.failed:
                continue
            try:
                found[i] = trainer.stored(i)
            except IntegrityFault as error:
                trainer.failed[i] = error.message
        return found

    def _measured(self, parts: list[tuple[LoraWeights, ...]]) -> list[Any]:
        return self.group.measure(self.base, parts) if self.group.measure is not None else []
