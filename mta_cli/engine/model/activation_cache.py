"""A cache of computed states, bounded in bytes; the least recently used entry is dropped first.

Code that changes the weights must call `clear`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

ACTIVATION_CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class CachedPrefix:
    """The cached start of a text's pass: states [time, width] from token `offset` on, and keys and values before it."""

    offset: int
    states: Tensor
    prefix_kv: Tensor | None = None  # [layers, 2, kv heads, offset, head width]

    @property
    def nbytes(self) -> int:
        """Bytes of states, keys and values."""
        return self.states.nbytes + (self.prefix_kv.nbytes if self.prefix_kv is not None else 0)

    def select_tokens(self, tokens: Sequence[int]) -> CachedPrefix:
        """The same prefix with only the states at `tokens` (ascending)."""
        return CachedPrefix(
            self.offset, self.states[[token - self.offset for token in tokens if token >= self.offset]], self.prefix_kv
        )


class ActivationCache:
    """Cached prefixes by key, of at most `limit` bytes in all."""

    def __init__(self, limit: int = ACTIVATION_CACHE_BYTES) -> None:
        self.limit, self.nbytes = limit, 0
        self._prefixes: OrderedDict[Hashable, CachedPrefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._prefixes)

    def get(self, key: Hashable) -> CachedPrefix | None:
        """The prefix of `key`, which becomes the most recently used entry; None if it is not cached."""
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
        return self._prefixes.get(key)

    def add_prefix(self, key: Hashable, prefix: CachedPrefix) -> None:
        """Keep `prefix`, dropping the least recently used ones to make room; not if it is larger than `limit`."""
        self._drop(key)
        while self._prefixes and self.nbytes + prefix.nbytes > self.limit:
            self._drop(next(iter(self._prefixes)))
        if self.nbytes + prefix.nbytes <= self.limit:
            self._prefixes[key] = prefix
            self.nbytes += prefix.nbytes

    def clear(self) -> None:
        """Drop everything."""
        self._prefixes.clear()
        self.nbytes = 0

    def _drop(self, key: Hashable) -> None:
        if (old := self._prefixes.pop(key, None)) is not None:
            self.nbytes -= old.nbytes
