"""States of texts that were computed once, for whoever needs them next; the least recently used goes first.

Knows neither how they are computed nor when the weights change: who changes them calls `clear`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

ACTIVATION_CACHE_BYTES = 2 << 30  # bytes held at most


@dataclass(frozen=True)
class CachedPrefix:
    """Where a text's pass begins: states [time, width] from token `at` on, and what stands before them."""

    offset: int
    states: Tensor
    prefix_kv: Tensor | None = None  # keys and values before `at`, [layers, 2, kv heads, at, head width]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.states.nbytes + (self.prefix_kv.nbytes if self.prefix_kv is not None else 0)

    def select_tokens(self, tokens: Sequence[int]) -> CachedPrefix:
        """The same for those of its text's `tokens`, in ascending order; the ones before `at` stay as they are."""
        return CachedPrefix(
            self.offset, self.states[[token - self.offset for token in tokens if token >= self.offset]], self.prefix_kv
        )


class ActivationCache:
    """Starts by key, `limit` bytes of them at most."""

    def __init__(self, limit: int = ACTIVATION_CACHE_BYTES) -> None:
        self.limit, self.nbytes = limit, 0
        self._starts: OrderedDict[Hashable, CachedPrefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._starts)

    def get(self, key: Hashable) -> CachedPrefix | None:
        """What is kept under `key`, now the most recently used."""
        if key in self._starts:
            self._starts.move_to_end(key)
        return self._starts.get(key)

    def add_prefix(self, key: Hashable, start: CachedPrefix) -> None:
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
