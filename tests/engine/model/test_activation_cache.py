"""Kept states: the least recently used go first, and never more is held than may be."""

from __future__ import annotations

import torch

from mta_cli.engine.model.activation_cache import ActivationCache, CachedPrefix


def start(numbers: int) -> CachedPrefix:
    return CachedPrefix(0, torch.zeros(numbers, 1))  # 4 bytes each


def test_early_keys_and_values_count() -> None:
    assert CachedPrefix(2, torch.zeros(3, 1), torch.zeros(2, 1)).nbytes == 20


def test_the_least_recently_used_goes_first() -> None:
    kept = ActivationCache(limit=12)
    for key in "abc":
        kept.add_prefix(key, start(1))
    assert kept.get("a") is not None
    kept.add_prefix("d", start(1))
    assert [key for key in "abcd" if kept.get(key) is not None] == ["a", "c", "d"]
    assert kept.nbytes == 12 and len(kept) == 3


def test_one_in_place_of_another_with_its_key() -> None:
    kept = ActivationCache(limit=12)
    kept.add_prefix("a", start(1))
    kept.add_prefix("a", start(3))
    assert len(kept) == 1 and kept.nbytes == 12


def test_what_is_too_large_is_not_kept() -> None:
    kept = ActivationCache(limit=12)
    kept.add_prefix("a", start(1))
    kept.add_prefix("b", start(4))
    assert kept.get("b") is None and kept.nbytes <= 12


def test_clearing_forgets_everything() -> None:
    kept = ActivationCache()
    kept.add_prefix("a", start(1))
    kept.clear()
    assert kept.get("a") is None and kept.nbytes == 0 and len(kept) == 0
