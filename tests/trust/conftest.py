"""One stage for all trials of commands, and one ground for all trials of damage."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from tests.trust.harm import Ground
from tests.trust.scenes import Stage


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Stage:
    """Where commands are put on trial."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot copy a process")
    return Stage(tmp_path_factory.mktemp("stage"), tiny_base_path, tiny_embedder_path)


@pytest.fixture(scope="session")
def built_ground(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Ground:
    """A store to be damaged, with models of its own."""
    place = tmp_path_factory.mktemp("ground")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(place / "registered"))
        return Ground(place, tiny_base_path, tiny_embedder_path)


@pytest.fixture
def ground(built_ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """The same with this test's models."""
    monkeypatch.setenv("MTA_MODELS", str(built_ground.place / "registered"))
    monkeypatch.setenv("MTA_MODELS_BASE", "tiny")
    monkeypatch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
    return built_ground
