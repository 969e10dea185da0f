"""A peopled store for the tests of jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from store.registry import Registry
from tests.pipeline import town


@pytest.fixture
def peopled(store_root: Path) -> Iterator[Registry]:
    """A store with the people of `town`, and the tiny models."""
    with Registry.open(store_root, create=True) as registry:
        town.people(registry)
        yield registry
