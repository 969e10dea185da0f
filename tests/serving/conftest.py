"""A server in a thread of the test's process, on a store whose people have models."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving.running import Running, run_server

_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def loopback(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients may reach the loopback address, and no other."""
    pytest.importorskip("starlette", reason="mta serve's packages are not installed")

    def connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and (not isinstance(address, tuple) or address[0] not in ("127.0.0.1", "::1")):
            raise AssertionError(f"a test reached for the network: {address!r}")
        _connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)


Start = Callable[..., Running]


@pytest.fixture
def start(store_root: Path) -> Iterator[Start]:
    """Starts servers that end with the test; see `run_server`."""
    running: list[Running] = []

    def begin(**settings: object) -> Running:
        running.append(run_server(store_root, **settings))  # type: ignore[arg-type]
        return running[-1]

    yield begin
    for one in running:
        one.stop()


@pytest.fixture
def served(start: Start) -> Running:
    """A server of texts: alice is adapted, bob fused, carol new."""
    return start()


@pytest.fixture
def labelled(start: Start) -> Running:
    """The same for movie tags."""
    return start(task="lamp-2")
