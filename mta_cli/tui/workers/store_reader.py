"""Runs queries on the store in a thread of their own, so that none blocks the screen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mta_cli.events import ItemKept

if TYPE_CHECKING:
    from store.registry import Registry

T = TypeVar("T")


class StoreReader:
    """Runs queries on the store at `root`, one after another, in the one thread that owns its SQLite connection."""

    def __init__(self, root: Path, timeout: float) -> None:
        self.root = root
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._registry: Registry | None = None
        self.on_kept: Callable[[ItemKept], None] = lambda kept: None
        """Called in the window's thread with every history item that a query added."""

    async def read(self, query: Callable[[Registry], T]) -> T:
        """Run `query` on the open store; returns its result. Raises its errors and the errors of opening the store."""
        found = await asyncio.wrap_future(self._thread.submit(self._run_query, query))
        if isinstance(found, ItemKept):
            self.on_kept(found)
        return found

    async def close(self) -> None:
        """Close the store after all waiting queries."""
        await asyncio.wrap_future(self._thread.submit(self._close_registry))
        self._thread.shutdown()

    def _run_query(self, query: Callable[[Registry], T]) -> T:
        from store.registry import Registry

        if self._registry is None:
            self._registry = Registry.open(self.root, create=True, timeout=self._timeout)
        return query(self._registry)

    def _close_registry(self) -> None:
        if self._registry is not None:
            self._registry.close()
            self._registry = None
