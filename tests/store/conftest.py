"""A fresh store for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.registry import Registry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the test's store is or will be."""
    return tmp_path / "store"


@pytest.fixture
def reg(root: Path) -> Iterator[Registry]:
    """A new store, open."""
    with Registry.open(root, create=True) as registry:
        yield registry
