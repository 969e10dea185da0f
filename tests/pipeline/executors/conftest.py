"""Ray where it is installed, with several small groups, so that there is something to do for several workers."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from mta_cli.engine.methods import anchor_weights
from mta_cli.pipeline.training import groups
from tests.network import LOOPBACK, allow_hosts


@pytest.fixture(autouse=True)
def small_groups(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two; Ray may talk to this machine."""
    monkeypatch.setattr(groups, "MAX_USERS_PER_GROUP", 2)
    monkeypatch.setattr(anchor_weights, "MAX_USERS_PER_BATCH", 2)
    own = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    allow_hosts(monkeypatch, {*LOOPBACK, *own})


@pytest.fixture
def ray() -> Any:
    """Ray, where it is installed."""
    return pytest.importorskip("ray", reason="Ray is not installed: pip install 'mta-cli[ray]'")
