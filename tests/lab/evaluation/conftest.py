"""A finished evaluation that many tests look at, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.evaluation.trial import Trial, make_trial


@pytest.fixture(scope="package")
def trial(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Iterator[Trial]:
    """Every method on all users, each with a secret in an item older than the shots. Treat it as read-only."""
    made = make_trial(tmp_path_factory.mktemp("trial"), tiny_base_path, tiny_embedder_path)
    yield made
    made.reg.close()
