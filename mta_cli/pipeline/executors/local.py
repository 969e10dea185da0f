"""Trains groups one after another in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.training.session import SessionReport, TrainingSession
    from mta_cli.engine.training.work import GroupWork


class Executor(Protocol):
    """Where groups are trained. What a group becomes does not depend on it."""

    def run(self, works: Iterable[GroupWork]) -> Iterator[tuple[int, SessionReport]]:
        """Train the works, which are drawn as there is room for them; the reports of each, by its number."""
        ...

    def set_task_adapter(self, below: LoraWeights | None) -> None:
        """What the works that follow are trained above. A base in this process holds it by then."""
        ...

    def checkpoint(self, number: int) -> bytes | None:
        """A checkpoint of the running work `number` as it is now; None where only the reported ones are known."""
        ...


class LocalExecutor:
    """On a base that is loaded here and holds the task adapter."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self._running: tuple[int, TrainingSession] | None = None

    def run(self, works: Iterable[GroupWork]) -> Iterator[tuple[int, SessionReport]]:
        """See `Executor`."""
        for number, work in enumerate(works):
            session = work.session(self._base)
            self._running = (number, session)
            for report in session.run_training():
                yield number, report
            self._running = None

    def set_task_adapter(self, below: LoraWeights | None) -> None:
        """See `Executor`."""

    def checkpoint(self, number: int) -> bytes | None:
        """See `Executor`."""
        running = self._running
        return running[1].checkpoint_bytes() if running is not None and running[0] == number else None
