"""The events of a running job: small frozen records that its generator yields. Renders nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PlanLine:
    """One resolved value of a plan and its origin (default, file, environment, flag or derived)."""

    name: str
    value: str
    origin: str = "derived"


@dataclass(frozen=True)
class JobPlan:
    """The job's plan; the only event of a dry run besides `JobResult`."""

    job: str
    lines: tuple[PlanLine, ...]


@dataclass(frozen=True)
class JobStarted:
    """The job starts. `total` is its number of `unit`s (steps, items, bytes); None if unknown."""

    job: str
    total: int | None = None
    unit: str = "steps"


@dataclass(frozen=True)
class JobProgress:
    """Progress: `done` units of the job are finished after this step. `label`: its current part (an anchor, a file)."""

    label: str
    done: int
    loss: float | None = None
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class ArtifactSaved:
    """Something was stored: `kind` (adapter, recipe, stack, bank, model, …) and its name."""

    kind: str
    name: str
    detail: str = ""


@dataclass(frozen=True)
class ItemKept(ArtifactSaved):
    """An answer became a history item of a user: `name` is the item's id in the task."""

    user: str = ""
    task: str = ""


@dataclass(frozen=True)
class Note:
    """A line of information for the user. `warning`: the result is incomplete. `detail`: shown only with -v."""

    text: str
    warning: bool = False
    detail: bool = False


@dataclass(frozen=True)
class TextChunk:
    """A piece of generated text. `column` names its answer if several stream (base, common, fused, adapted)."""

    text: str
    column: str = ""


@dataclass(frozen=True)
class JobResult:
    """The job's result, exactly what `--json` prints."""

    result: Any = field(default_factory=dict)


@dataclass(frozen=True)
class UnitFailed:
    """One part of the job failed, and the job continues without it."""

    label: str
    message: str


Event = JobPlan | JobStarted | JobProgress | ArtifactSaved | Note | TextChunk | JobResult | UnitFailed


def forward_events(events: Iterable[Event]) -> Generator[Event, None, Any]:
    """Yields an inner job's events without its plan and its result, and returns the result."""
    result: Any = None
    for event in events:
        if isinstance(event, JobResult):
            result = event.result
        elif not isinstance(event, JobPlan):
            yield event
    return result
