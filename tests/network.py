"""Lets a test connect to some addresses; the fixture `alone` forbids all."""

from __future__ import annotations

import socket
from collections.abc import Collection

import pytest

LOOPBACK = ("127.0.0.1", "::1")
_connect = socket.socket.connect


def allow_hosts(monkeypatch: pytest.MonkeyPatch, hosts: Collection[str] = LOOPBACK) -> None:
    """Clients in this process may reach `hosts`, and no other address."""

    def connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX and (not isinstance(address, tuple) or address[0] not in hosts):
            raise AssertionError(f"a test reached for the network: {address!r}")
        _connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", connect)
