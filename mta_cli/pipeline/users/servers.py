"""Finds running servers of a store and tells them that users or models have changed.

A server listens on a socket in the store's folder `servers`. It answers a connection after it has re-read the store and
dropped removed parts, or with the name of its base.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

FOLDER, SUFFIX = "servers", ".sock"
RECHECK, DONE, BASE = b"recheck\n", b"done\n", b"base\n"
ANSWER_SECONDS, BASE_SECONDS = 30.0, 2.0
MAX_NAME_BYTES = 4096  # bytes of a base's name, which may be a path
MAX_SOCKET_PATH = 100  # characters of a socket's path that all systems accept


def new_socket_path(root: Path) -> Path:
    """A unique path for this process's socket. The process id alone is not enough: two containers may have the same."""
    return root / FOLDER / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"


def remove_dead_sockets(root: Path) -> None:
    """Remove the sockets of killed servers. A running server accepts connections before its socket gets its final
    name.
    """
    for path in _sockets(root):
        with contextlib.suppress(OSError):
            try:
                _connect(path).close()
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short path to a socket, if its own path is too long for the system."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def running_servers(root: Path) -> list[tuple[int, str]]:
    """The servers that answer on a socket of this store, as (process id, name of the base)."""
    found = []
    for path in _sockets(root):
        with contextlib.suppress(OSError), _connect(path) as connection:
            found.append((_process_number(path), _ask_base(connection)))
    return found


def recheck_servers(root: Path) -> list[int]:
    """Ask running servers to re-read the store; returns those that did not reply in time."""
    silent = []
    for path in _sockets(root):
        try:
            connection = _connect(path)
        except OSError:
            continue  # the server has ended without removing its socket
        with connection:
            connection.settimeout(ANSWER_SECONDS)
            try:
                connection.sendall(RECHECK)
                if connection.recv(len(DONE)) != DONE:
                    silent.append(_process_number(path))
            except OSError:
                silent.append(_process_number(path))
    return silent


def _ask_base(connection: socket.socket) -> str:
    """The name of a server's base; `?` if it does not answer."""
    connection.settimeout(BASE_SECONDS)
    try:
        connection.sendall(BASE)
        with connection.makefile("rb") as answer:
            return answer.readline(MAX_NAME_BYTES).decode(errors="replace").strip() or "?"
    except OSError:
        return "?"


def _sockets(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).glob(f"*{SUFFIX}") if _process_part(path).isdigit())


def _process_number(path: Path) -> int:
    return int(_process_part(path))


def _process_part(path: Path) -> str:
    return path.stem.partition("-")[0]


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as place:
            connection.connect(place)
    except OSError:
        connection.close()
        raise
    return connection
