"""The socket of a server on a store that may only be read, or whose folder of sockets cannot be made."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput
from mta_cli.options import ServeOptions
from mta_cli.pipeline.users.serve_keys import KeyFile
from mta_cli.pipeline.users.servers import running_servers
from mta_cli.serving.access import Access
from mta_cli.serving.server import Server, listen


class NoModel:
    """A service that answers nothing."""

    options = ServeOptions()
    ready = True

    async def start(self) -> None:
        """Load nothing."""

    async def stop(self, seconds: float) -> None:
        """Close nothing."""


def run(root: Path) -> str:
    """Serve the store in `root` until it is ready; returns what ended it."""
    service: Any = NoModel()

    async def serve() -> str:
        access = Access("127.0.0.1", lambda: KeyFile.read(root / "serve-keys.json"))
        server = Server(service, access, None, root, lambda: server._finish("ready"))
        with listen("127.0.0.1", 0) as bound:
            return await server.run(bound)

    return asyncio.run(serve())


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A store in which no folder of sockets can be made."""
    (tmp_path / "servers").touch()
    return tmp_path


def test_a_server_starts_on_a_store_that_may_only_be_read(
    blocked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "access", lambda *given: False)
    monkeypatch.setattr("mta_cli.serving.server.log.propagate", True)
    assert run(blocked) == "ready" and running_servers(blocked) == []
    assert "`mta user rm` cannot tell this server" in caplog.text


def test_a_socket_that_cannot_be_made_is_told_with_the_reason(blocked: Path) -> None:
    with pytest.raises(BadInput, match="cannot be made: File exists"):
        run(blocked)
