"""Kept states: the least recently used go first, and never more is held than may be."""

from __future__ import annotations

import torch

from mta_cli.engine.model.activation_cache import Kept, Start


def start(numbers: int) -> Start:
    return Start(0, torch.zeros(numbers, 1))  # 4 bytes each


def test_early_keys_and_values_count() -> None:
    assert Start(2, torch.zeros(3, 1), torch.zeros(2, 1)).nbytes == 20


def test_the_least_recently_used_goes_first() -> None:
    kept = Kept(limit=12)
    for key in "abc":
        kept.put(key, start(1))
    assert kept.get("a") is not None
    kept.put("d", start(1))
    assert [key for key in "abcd" if kept.get(key) is not None] == ["a", "c", "d"]
    assert kept.nbytes == 12 and len(kept) == 3


def test_one_in_place_of_another_with_its_key() -> None:
    kept = Kept(limit=12)
    kept.put("a", start(1))
    kept.put("a", start(3))
    assert len(kept) == 1 and kept.nbytes == 12


def test_what_is_too_large_is_not_kept() -> None:
    kept = Kept(limit=12)
    kept.put("a", start(1))
    kept.put("b", start(4))
    assert kept.get("b") is None and kept.nbytes <= 12


def test_clearing_forgets_everything() -> None:
    kept = Kept()
    kept.put("a", start(1))
    kept.clear()
    assert kept.get("a") is None and kept.nbytes == 0 and len(kept) == 0
