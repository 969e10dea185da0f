"""Reads and changes the store in a thread of its own, so that the screen is never blocked."""

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


class StoreThread:
    """Runs actions on the store at `root`, one after another, in the one thread that owns its SQLite connection."""

    def __init__(self, root: Path, timeout: float) -> None:
        self.root = root
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._registry: Registry | None = None
        self.on_kept: Callable[[ItemKept], None] = lambda kept: None
        """Called in the window's thread with every history item that an action added."""

    async def run(self, action: Callable[[Registry], T]) -> T:
        """Run `action` on the store, which is made if it is missing; returns its result.

        Raises the errors of `action` and of opening the store.
        """
        found = await asyncio.wrap_future(self._thread.submit(self._run_action, action))
        if isinstance(found, ItemKept):
            self.on_kept(found)
        return found

    async def close(self) -> None:
        """Close the store after all waiting actions."""
        await asyncio.wrap_future(self._thread.submit(self._close_registry))
        self._thread.shutdown()

    def _run_action(self, action: Callable[[Registry], T]) -> T:
        from store.registry import Registry

        if self._registry is None:
            self._registry = Registry.open(self.root, create=True, timeout=self._timeout)
        return action(self._registry)

    def _close_registry(self) -> None:
        if self._registry is not None:
            self._registry.close()
            self._registry = None
