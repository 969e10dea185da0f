"""The interface of executors, and the executor that runs units of work one after another in this process."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.engine.work import AnchorLookup, ReportT, Session, Work


class Executor(Protocol):
    """Runs works. Results do not depend on the executor."""

    def run(
        self, works: Iterable[Work[ReportT]], below: LoraWeights | None = None, anchors: AnchorLookup = ()
    ) -> Iterator[tuple[int, ReportT]]:
        """Run `works` with the task adapter `below`; yields each report with its work's number.

        Works are drawn from the iterator when they can run. They refer to `anchors` by index. For work in this process,
        `below` must already be merged into the base.
        """
        ...

    def checkpoint(self, number: int) -> bytes | None:
        """A checkpoint of the present state of the running work `number`; None if it is not available."""
        ...


class LocalExecutor:
    """Runs works on a base in this process, into which the task adapter is merged."""

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
            del session  # free its memory before the next work is drawn

    def checkpoint(self, number: int) -> bytes | None:
        """See `Executor`."""
        running = self._running
        return running[1].checkpoint_bytes() if running is not None and running[0] == number else None
