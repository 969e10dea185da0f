"""A least-recently-used cache with a limit in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """Values by key, of at most `max_bytes` together. The newest value is kept even if it is larger than that."""

    def __init__(self, max_bytes: int, size_of: Callable[[V], int]) -> None:
        self._max_bytes, self._size_of = max_bytes, size_of
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.num_bytes, self.hits, self.misses = 0, 0, 0

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._values))

    def get(self, key: K) -> V | None:
        """The value, marked as used now; None if missing."""
        if key not in self._values:
            self.misses += 1
            return None
        self.hits += 1
        self._values.move_to_end(key)
        return self._values[key][0]

    def items(self) -> list[tuple[K, V]]:
        """All keys and values, without marking any value as used."""
        return [(key, value) for key, (value, _) in self._values.items()]

    def clear(self) -> None:
        """Remove all values."""
        for key in self:
            self.drop(key)

    def put(self, key: K, value: V) -> list[V]:
        """Keep a value, and drop and return the least recently used ones that no longer fit."""
        dropped: list[V] = []
        self.drop(key)
        size = self._size_of(value)
        self._values[key] = (value, size)
        self.num_bytes += size
        while self.num_bytes > self._max_bytes and len(self._values) > 1:
            oldest = next(iter(self._values))
            dropped.append(self._values[oldest][0])
            self.drop(oldest)
        return dropped

    def drop(self, key: K) -> None:
        """Drop a value, if it exists."""
        if key in self._values:
            self.num_bytes -= self._values.pop(key)[1]
