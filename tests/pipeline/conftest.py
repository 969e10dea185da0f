"""A peopled store for the tests of jobs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.registry import Registry
from tests.pipeline import town
from tests.pipeline.world import World, make_world


@pytest.fixture
def peopled(store_root: Path) -> Iterator[Registry]:
    """A store with the people of `town`, and the tiny models."""
    with Registry.open(store_root, create=True) as registry:
        town.people(registry)
        yield registry


@pytest.fixture(scope="session")
def banked_store(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Path:
    """A store with the people of `town` and their bank of three anchors. Treat it as read-only."""
    return town.make_store(tmp_path_factory.mktemp("banked"), tiny_base_path, tiny_embedder_path, town.built)


@pytest.fixture
def banked(banked_store: Path, store_root: Path) -> Iterator[Registry]:
    """A copy of that store, for tests of what comes after a bank's build."""
    shutil.copytree(banked_store, store_root)
    with Registry.open(store_root) as registry:
        yield registry


@pytest.fixture
def world(store_root: Path) -> Iterator[World]:
    """A store whose people have models for words of their own."""
    made = make_world(store_root)
    yield made
    made.reg.close()


@pytest.fixture
def labelled(store_root: Path) -> Iterator[World]:
    """The same for a task with labels."""
    made = make_world(store_root, task="lamp-2")
    yield made
    made.reg.close()
