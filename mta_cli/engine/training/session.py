"""The complete training of a group of users: measures losses before and after, makes checkpoints, and discards diverged
weights.

The product and the evaluation both train with this module, so both discard the same stacks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mta_cli.errors import IntegrityFault

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.training.trainer import GroupMember, Trainer, TrainStep

    MeasureLosses = Callable[[LoadedBase, list[tuple[LoraWeights, ...]]], list[Any]]

MIN_CHECKPOINT_SECONDS = 15.0
# the time between checkpoints is at least this many times the time that a checkpoint takes
MIN_CHECKPOINT_COST_RATIO = 10
# nats per labelled token or choice; weights are discarded if their loss rises by more than this and more than doubles
MAX_LOSS_RISE = 1.0
MAX_PROBE_ROWS = 64  # about this many rows, evenly spaced, on which the loss is measured before and after


@dataclass(frozen=True)
class SessionStarted:
    """The report before the first step.

    `steps_taken` counts the steps of all members that were restored from the checkpoint. `checkpoint_matches` is False
    if the checkpoint belongs to another training and was ignored.
    """

    steps_taken: int
    checkpoint_matches: bool


@dataclass(frozen=True)
class SessionStep:
    """One step of each member that has steps left, and a `checkpoint` if one is due."""

    steps: dict[int, TrainStep]
    checkpoint: bytes | None


@dataclass(frozen=True)
class TrainingResult:
    """The result of a group: each member's weights, rounded to float16, or the reason why there are none.

    `first_losses` and `last_losses` are mean losses on the probe rows (nats per labelled token or choice).
    `measured_before` and `measured_after` are the results of `measure_losses`; empty lists if it was not given.
    """

    weights: dict[int, LoraWeights]
    failures: dict[int, str]
    steps: list[list[TrainStep]]
    first_losses: list[float | None]
    last_losses: dict[int, float | None]
    measured_before: list[Any]
    measured_after: list[Any]


SessionReport = SessionStarted | SessionStep | TrainingResult


def divergence_reason(before: float | None, after: float | None) -> str | None:
    """The reason to discard weights whose mean loss on their own rows is not finite or far above its start; None to
    keep them.
    """
    if before is None or after is None:
        return None
    if math.isfinite(after) and after <= before + max(before, MAX_LOSS_RISE):
        return None
    return f"loss {before:.3g} before and {after:.3g} after the training"


class TrainingSession:
    """The training of `members` on one base, resumed from `checkpoint` if given.

    `measure_losses` is called once before and once after the training, with the base and each member's new LoRAs (none
    before the training, and none for failed members). It returns a result for each member.
    """

    def __init__(
        self,
        base: LoadedBase,
        members: Sequence[GroupMember],
        checkpoint: bytes | None = None,
        measure_losses: MeasureLosses | None = None,
    ) -> None:
        self.base, self.members = base, members
        self._resume_checkpoint, self._measure = checkpoint, measure_losses
        self._trainer: Trainer | None = None

    def run(self) -> Iterator[SessionReport]:
        """Train. Yields one `SessionStarted`, a `SessionStep` for every step, and one `TrainingResult`.

        Raises the errors of `Trainer.train_steps`.
        """
        from mta_cli.engine.scoring.log_likelihood import mean_losses
        from mta_cli.engine.training.trainer import Trainer

        members = self.members
        before = self._call_measure_losses([()] * len(members))
        probes = [one.examples[:: max(1, len(one.examples) // MAX_PROBE_ROWS)] for one in members]
        self._trainer = trainer = Trainer(self.base, members)
        # A fresh LoRA adds nothing, but with it these passes start at the same layer as training and share its cached
        # states.
        fresh = [(*member.frozen_loras, trainer.weights(i)) for i, member in enumerate(members)]
        first = mean_losses(self.base, list(zip(probes, fresh, strict=True)))
        yield self._resume_or_start(trainer)
        yield from self._steps(trainer)
        weights = self._finite_weights(trainer)
        last = mean_losses(self.base, [(probes[i], (*members[i].frozen_loras, own)) for i, own in weights.items()])
        ends = dict(zip(weights, last, strict=True))
        for i, end in ends.items():
            if (fault := divergence_reason(first[i], end)) is not None:
                trainer.failed[i] = fault
                del weights[i]
        after = self._call_measure_losses([(weights[i],) if i in weights else () for i in range(len(members))])
        yield TrainingResult(weights, trainer.failed, trainer.completed_steps, first, ends, before, after)

    def checkpoint_bytes(self) -> bytes | None:
        """The state of the training as a checkpoint; None before the report `SessionStarted`. Call it between two
        reports of `run`, not during a training step.
        """
        if self._trainer is None:
            return None
        return self._trainer.save_state()

    def _resume_or_start(self, trainer: Trainer) -> SessionStarted:
        saved, self._resume_checkpoint = self._resume_checkpoint, None
        fits = True
        if saved is not None:
            try:
                trainer.load_state(saved)
            except (ValueError, KeyError):
                fits = False
        return SessionStarted(sum(len(taken) for taken in trainer.completed_steps), fits)

    def _steps(self, trainer: Trainer) -> Iterator[SessionStep]:
        saved, pause = time.monotonic(), MIN_CHECKPOINT_SECONDS
        for steps in trainer.train_steps():
            due = (now := time.monotonic()) - saved > pause
            yield SessionStep(steps, trainer.save_state() if due else None)
            if due:
                saved = time.monotonic()
                pause = max(MIN_CHECKPOINT_SECONDS, MIN_CHECKPOINT_COST_RATIO * (saved - now))

    def _finite_weights(self, trainer: Trainer) -> dict[int, LoraWeights]:
        """By member index, the weights rounded to float16, without failed members.

        A member whose weights are not finite is added to `trainer.failed`.
        """
        weights = {}
        for i in range(len(trainer.members)):
            if i in trainer.failed:
                continue
            try:
                weights[i] = trainer.stored_weights(i)
            except IntegrityFault as error:
                trainer.failed[i] = str(error)
        return weights

    def _call_measure_losses(self, parts: list[tuple[LoraWeights, ...]]) -> list[Any]:
        """The result of `measure_losses` for each member with these LoRAs; empty if it was not given."""
        return [] if self._measure is None else self._measure(self.base, parts)
