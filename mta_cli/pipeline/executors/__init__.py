"""Executors, which run units of work: in this process (`local`), or on workers of a Ray cluster (`ray_workers`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.pipeline.executors.local import Executor, LocalExecutor

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.options import ExecutorOptions
    from mta_cli.pipeline.executors.ray_workers import RayExecutor, WorkerBase


class Executors:
    """The executors of a job, one for each base. Ray workers start with the first work and run until `close`."""

    def __init__(self, options: ExecutorOptions) -> None:
        """Raises UsageError if Ray is requested but not installed."""
        if options.executor == "ray":
            from mta_cli.pipeline.executors.ray_workers import import_ray

            import_ray()
        self._options = options
        self._with_workers: dict[WorkerBase, RayExecutor] = {}

    def for_base(self, base: LoadedBase, path: Path) -> Executor:
        """The executor for a base that was loaded from the folder `path`."""
        if self._options.executor == "local":
            return LocalExecutor(base)
        from mta_cli.pipeline.executors.ray_workers import RayExecutor, WorkerBase

        given = WorkerBase.of(base, path)
        if given not in self._with_workers:
            self._with_workers[given] = RayExecutor(given, self._options)
        return self._with_workers[given]

    def close(self) -> None:
        """Stop all workers, and the cluster if it was started here."""
        for executor in self._with_workers.values():
            executor.close()


@contextmanager
def open_executors(options: ExecutorOptions, outer: Executors | None = None) -> Iterator[Executors]:
    """New executors for a job, closed at the end of the block; or `outer`, the executors of the job that it is part of.

    Raises UsageError if Ray is requested but not installed.
    """
    if outer is not None:
        yield outer
        return
    executors = Executors(options)
    try:
        yield executors
    finally:
        executors.close()
