"""A computation on a base as a picklable value, so that any process with the base can run it. It contains no users'
names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase

ReportT = TypeVar("ReportT")
ReportT_co = TypeVar("ReportT_co", covariant=True)


class AnchorLookup(Protocol):
    """The factors of a bank's anchors, by number."""

    def __getitem__(self, number: int, /) -> LoraWeights: ...


class Session(Protocol[ReportT_co]):
    """A running computation of a `Work`."""

    def run(self) -> Iterator[ReportT_co]:
        """Run the work; yields reports."""
        ...

    def checkpoint_bytes(self) -> bytes | None:
        """The state of the work as a checkpoint, or None if it has none. Call it between two of its reports."""
        ...


class Work(Protocol[ReportT]):
    """A computation for an executor. Its result depends only on this object, the task adapter and the anchors."""

    @property
    def anchors_used(self) -> Sequence[int]:
        """The numbers of the anchors that the work needs."""
        ...

    def session(self, base: LoadedBase, anchors: AnchorLookup) -> Session[ReportT]:
        """The session on `base`, into which the task adapter is merged."""
        ...

    def remaining(self, report: ReportT) -> Work[ReportT] | None:
        """The work that remains if the process is lost after this report; None after the last one."""
        ...


class SingleReport(Generic[ReportT]):
    """A session that yields one report and has no checkpoints."""

    def __init__(self, compute: Callable[[], ReportT]) -> None:
        self._compute = compute

    def run(self) -> Iterator[ReportT]:
        """See `Session`."""
        yield self._compute()

    def checkpoint_bytes(self) -> bytes | None:
        """See `Session`."""
        return None
