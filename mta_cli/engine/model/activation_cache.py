"""States of texts that were computed once, for whoever needs them next; the least recently used goes first.

Knows neither how they are computed nor when the weights change: who changes them calls `clear`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

KEEP = 2 << 30  # bytes held at most


@dataclass(frozen=True)
class Start:
    """Where a text's pass begins: states [time, width] from token `at` on, and what stands before them."""

    at: int
    states: Tensor
    early: Tensor | None = None  # keys and values before `at`, [layers, 2, kv heads, at, head width]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.states.nbytes + (self.early.nbytes if self.early is not None else 0)

    def only(self, tokens: Sequence[int]) -> Start:
        """The same for those of its text's `tokens`, in ascending order; the ones before `at` stay as they are."""
        return Start(self.at, self.states[[token - self.at for token in tokens if token >= self.at]], self.early)


class Kept:
    """Starts by key, `limit` bytes of them at most."""

    def __init__(self, limit: int = KEEP) -> None:
        self.limit, self.nbytes = limit, 0
        self._starts: OrderedDict[Hashable, Start] = OrderedDict()

    def __len__(self) -> int:
        return len(self._starts)

    def get(self, key: Hashable) -> Start | None:
        """What is kept under `key`, now the most recently used."""
        if key in self._starts:
            self._starts.move_to_end(key)
        return self._starts.get(key)

    def put(self, key: Hashable, start: Start) -> None:
        """Keep `start`, in place of others where there is no room; not at all where it alone is too large."""
        self._drop(key)
        while self._starts and self.nbytes + start.nbytes > self.limit:
            self._drop(next(iter(self._starts)))
        if self.nbytes + start.nbytes <= self.limit:
            self._starts[key] = start
            self.nbytes += start.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self.nbytes = 0

    def _drop(self, key: Hashable) -> None:
        if (old := self._starts.pop(key, None)) is not None:
            self.nbytes -= old.nbytes
