"""Runs works one after another in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.work import AnchorLookup, ReportT, Session, Work


class Executor(Protocol):
    """Where works run. What becomes of a work does not depend on it."""

    def run(
        self, works: Iterable[Work[ReportT]], below: LoraWeights | None = None, anchors: AnchorLookup = ()
    ) -> Iterator[tuple[int, ReportT]]:
        """Run the works above the task adapter `below`; the reports of each, by its number.

        Works are drawn as there is room for them. They name `anchors` by number. A base in this process holds the task
        adapter by then.
        """
        ...

    def checkpoint(self, number: int) -> bytes | None:
        """A checkpoint of the running work `number` as it is now; None where only the reported ones are known."""
        ...


class LocalExecutor:
    """On a base that is loaded here and holds the task adapter."""

    def __init__(self, base: LoadedBase) -> None:
        self._base = base
        self._running: tuple[int, Session[Any]] | None = None

    def run(
        self, works: Iterable[Work[ReportT]], below: LoraWeights | None = None, anchors: AnchorLookup = ()
    ) -> Iterator[tuple[int, ReportT]]:
        """See `Executor`."""
        numbers = itertools.count()
        for work in works:
            number, session = next(numbers), work.session(self._base, anchors)
            del work
            self._running = (number, session)
            for report in session.run():
                yield number, report
            self._running = None
            del session  # what the work holds is freed before the next is drawn

    def checkpoint(self, number: int) -> bytes | None:
        """See `Executor`."""
        running = self._running
        return running[1].checkpoint_bytes() if running is not None and running[0] == number else None
