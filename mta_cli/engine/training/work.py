"""A group's training as a picklable value, so that any process with the base can run it. It contains no users'
names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mta_cli.engine.scoring.log_likelihood import mean_losses
from mta_cli.engine.training.session import SessionReport, SessionStep, TrainingResult, TrainingSession

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.scoring.label_examples import TrainingExample
    from mta_cli.engine.training.trainer import GroupMember
    from mta_cli.engine.work import AnchorLookup


@dataclass(frozen=True)
class MeasuredLosses:
    """Mean losses of one member, nats per labelled token or choice; None without examples.

    `shots`: on the member's own examples. `heldout`: on the held-out examples. `common`: on the held-out examples under
    the base with the task adapter alone; only measured before the training.
    """

    shots: float | None
    heldout: float | None
    common: float | None = None


@dataclass(frozen=True)
class GroupWork:
    """Members that train together, resumed from `checkpoint` if given.

    With `heldout` examples for each member, the losses on these and on the members' own examples are measured before
    and after the training.
    """

    members: tuple[GroupMember, ...]
    checkpoint: bytes | None = field(default=None, repr=False)
    heldout: tuple[Sequence[TrainingExample], ...] | None = None

    @property
    def anchors_used(self) -> Sequence[int]:
        """Empty, because each member already contains its merged anchors."""
        return ()

    def session(self, base: LoadedBase, anchors: AnchorLookup = ()) -> TrainingSession:
        """The training on `base`, into which the task adapter is merged."""
        return TrainingSession(
            base, self.members, self.checkpoint, None if self.heldout is None else self.measure_losses
        )

    def train(self, base: LoadedBase) -> TrainingResult:
        """Run the training on `base` in this process to its end; returns the result."""
        *_, result = self.session(base).run()
        assert isinstance(result, TrainingResult)
        return result

    def remaining(self, report: SessionReport) -> GroupWork | None:
        """The rest of the training after this report, from its checkpoint if it has one; None after the result."""
        if isinstance(report, TrainingResult):
            return None
        if isinstance(report, SessionStep) and report.checkpoint is not None:
            return replace(self, checkpoint=report.checkpoint)
        return self

    def measure_losses(self, base: LoadedBase, loras: Sequence[tuple[LoraWeights, ...]]) -> list[MeasuredLosses]:
        """The losses of all members under their frozen LoRAs and `loras`, in one batch."""
        assert self.heldout is not None
        users = [(*member.frozen_loras, *own) for member, own in zip(self.members, loras, strict=True)]
        cases = [(member.examples, own) for member, own in zip(self.members, users, strict=True)]
        cases += list(zip(self.heldout, users, strict=True))
        if not any(loras):
            cases += [(examples, ()) for examples in self.heldout]
        losses, count = mean_losses(base, cases), len(self.members)
        return [MeasuredLosses(*losses[i::count]) for i in range(count)]
