"""Running servers of a store: how they are found, and how they are told that users or models have changed.

A server listens on a socket in the store's folder `servers`. Whoever connects is answered once the server has looked at
the store again and has dropped what is gone; nothing is sent but that.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

FOLDER, SUFFIX, DONE = "servers", ".sock", b"done\n"
ANSWER_SECONDS = 30.0
MAX_SOCKET_PATH = 100  # characters of a socket's path that every system takes


def socket_path(root: Path, pid: int) -> Path:
    """The socket of the server with this process number."""
    return root / FOLDER / f"{pid}{SUFFIX}"


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path of a socket that the system takes, where that of its folder is too long."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def running_servers(root: Path) -> list[int]:
    """The process numbers of the servers that answer on a socket of this store."""
    found = []
    for path in _sockets(root):
        if (connection := _connect(path)) is not None:
            connection.close()
            found.append(int(path.stem))
    return found


def recheck_servers(root: Path) -> list[int]:
    """Let every server of the store look at it again; returns those that did not answer in time."""
    silent = []
    for path in _sockets(root):
        if (connection := _connect(path)) is None:
            continue  # it has ended without taking its socket along
        with connection:
            connection.settimeout(ANSWER_SECONDS)
            try:
                connection.sendall(b"recheck\n")
                if connection.recv(len(DONE)) != DONE:
                    silent.append(int(path.stem))
            except OSError:
                silent.append(int(path.stem))
    return silent


def _sockets(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).glob(f"*{SUFFIX}") if path.stem.isdigit())


def _connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as place:
            connection.connect(place)
    except OSError:
        connection.close()
        return None
    return connection
