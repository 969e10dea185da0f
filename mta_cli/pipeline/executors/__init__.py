"""Where groups are trained: in this process (`local`), or by workers of a Ray cluster (`ray_workers`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.pipeline.executors.local import Executor, LocalExecutor

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.options import ExecutorOptions


@contextmanager
def open_executor(options: ExecutorOptions, base: LoadedBase, path: Path) -> Iterator[Executor]:
    """The executor of a job; `path` is the base's folder. Its workers end with the block. Raises UsageError."""
    if options.executor == "local":
        yield LocalExecutor(base)
        return
    from mta_cli.pipeline.executors.ray_workers import RayExecutor

    executor = RayExecutor(base, path, options)
    try:
        yield executor
    finally:
        executor.close()
