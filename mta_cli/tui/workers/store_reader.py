"""The store, read from one thread of its own, so that no query ever holds up the screen. Writes nothing by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from store.registry import Registry

T = TypeVar("T")


class StoreReader:
    """Answers questions about the store at `root`, one after another. It is opened with the first of them."""

    def __init__(self, root: Path, timeout: float) -> None:
        self.root = root
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shelf")
        self._registry: Registry | None = None

    async def read(self, question: Callable[[Registry], T]) -> T:
        """What `question` finds. Raises what it raises, and what opening the store does."""
        return await asyncio.wrap_future(self._thread.submit(self._run_query, question))

    def close(self) -> None:
        """Close the store when the questions that were asked are answered."""
        self._thread.submit(self._close_registry)
        self._thread.shutdown(wait=True)

    def _run_query(self, question: Callable[[Registry], T]) -> T:
        return question(self._get_registry())

    def _get_registry(self) -> Registry:
        """The registry; only in the shelf's own thread."""
        if self._registry is None:
            from store.registry import Registry

            self._registry = Registry.open(self.root, create=True, timeout=self._timeout)
        return self._registry

    def _close_registry(self) -> None:
        if self._registry is not None:
            self._registry.close()
            self._registry = None
