"""A loaded tiny base for the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.engine.model.load import LoadedBase, load_base


@pytest.fixture
def base(tiny_base_path: Path) -> LoadedBase:
    """The tiny base in float32 on the CPU, a fresh copy for each test."""
    return load_base(tiny_base_path, name="tiny", fingerprint="sha256:tiny", device="cpu", dtype="float32")
