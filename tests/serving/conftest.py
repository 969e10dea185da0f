"""A server in a thread of the test's process, on a store whose people have models."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.network import allow_hosts
from tests.pipeline.world import make_world
from tests.serving.running import Process, Running, run_server


@pytest.fixture(autouse=True)
def loopback(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients may reach the loopback address, and no other."""
    pytest.importorskip("starlette", reason="mta serve's packages are not installed")
    allow_hosts(monkeypatch)


@pytest.fixture(autouse=True)
def unspoilt_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's log reaches `caplog`, whatever a command before made of logging in the test's process."""
    for log in map(logging.getLogger, ("mta.serve", "mta.serve.strangers")):
        monkeypatch.setattr(log, "propagate", True)
        monkeypatch.setattr(log, "disabled", False)
        monkeypatch.setattr(log, "filters", [])
        monkeypatch.setattr(log.manager, "disable", logging.NOTSET)


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


@pytest.fixture
def process(store_root: Path) -> Iterator[Process]:
    """A server of its own process on the world of texts."""
    make_world(store_root).reg.close()
    made = Process()
    yield made
    made.end(signal.SIGKILL)
