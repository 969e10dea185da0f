"""A small town's store for the window, made once and copied; and the window itself, driven without a terminal."""

from __future__ import annotations

import asyncio
import inspect
import shutil
from pathlib import Path

import pytest

from mta_cli.pipeline.personalize.adapt import adapt_users
from mta_cli.pipeline.personalize.fuse import fuse_user
from mta_cli.pipeline.requests import AdaptRequest
from store.registry import Registry
from tests.pipeline import town
from tests.tui.driving import settle_clock


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No animations, no blinking, colours as without NO_COLOR, and a clock that says the same everywhere."""
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.delenv("NO_COLOR", raising=False)
    settle_clock(monkeypatch)


@pytest.fixture(scope="session")
def made_town(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Path:
    """Models and a store: nine people with histories, three anchors among them, ida adapted, jon fused, kim new."""
    root = tmp_path_factory.mktemp("town")
    town.make_store(root, tiny_base_path, tiny_embedder_path, town.built, _adapt_ida, _fuse_jon)
    return root


def _adapt_ida(reg: Registry) -> None:
    town.finish(adapt_users(reg, AdaptRequest([reg.users.get("ida")], town.QUICK, town.fuse_request())))


def _fuse_jon(reg: Registry) -> None:
    town.finish(fuse_user(reg, reg.users.get("jon"), town.fuse_request()))


@pytest.fixture
def demo_store(made_town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the town's store for this test alone; `MTA_STORE` and the models point to it."""
    shutil.copytree(made_town / "store", tmp_path / "store")
    monkeypatch.setenv("MTA_MODELS", str(made_town / "models"))
    return _chosen(tmp_path / "store", monkeypatch)


@pytest.fixture
def empty_store(made_town: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path where no store is yet, beside the same models."""
    monkeypatch.setenv("MTA_MODELS", str(made_town / "models"))
    return _chosen(tmp_path / "store", monkeypatch)


def _chosen(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTA_STORE", str(root))
    monkeypatch.setenv("MTA_MODELS_BASE", "tiny")
    monkeypatch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
    monkeypatch.setenv("MTA_MACHINE_DTYPE", "float32")
    monkeypatch.setenv("MTA_MACHINE_DEVICE", "cpu")
    return root
