"""Finds running servers of a store, and tells them that users or models have changed.

A server has two sockets in the store's folder `servers`, which only the store's owner can open. The first takes two
commands: `recheck` makes the server re-read the store and drop removed parts, which it confirms when done; `about`
returns a description of what it serves. The second takes HTTP requests without a key.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER, SUFFIX, HTTP_SUFFIX = "servers", ".sock", ".http"
RECHECK, DONE, ABOUT = b"recheck\n", b"done\n", b"about\n"
ANSWER_SECONDS, ABOUT_SECONDS = 30.0, 2.0
MAX_ABOUT_BYTES = 65_536
MAX_SOCKET_PATH = 100  # characters of a socket's path that all systems accept


@dataclass(frozen=True)
class RunningServer:
    """A running server. `http` is the path of its socket for requests, and `about` describes what it serves.

    `about` has `base` (a name), `fingerprint`, `ready` and the server's `ChatOptions` under `chat`. It is empty if the
    server does not answer in time or has another version.
    """

    process: int
    http: Path
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The name of the served base; `?` if the server did not report it."""
        return str(self.about.get("base", "?"))


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
                http_path(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)


def http_path(path: Path) -> Path:
    """The path of the socket for HTTP requests, beside the socket for commands at `path`."""
    return path.with_suffix(HTTP_SUFFIX)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path to the socket at `path` during the block: a short one if `path` is too long for the system."""
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH or not Path("/proc/self/fd").exists():
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def running_servers(root: Path) -> list[RunningServer]:
    """The servers that accept connections on a socket of this store."""
    found = []
    for path in _sockets(root):
        with contextlib.suppress(OSError), _connect(path) as connection:
            found.append(RunningServer(_process_number(path), http_path(path), _ask_about(connection)))
    return found


def recheck_servers(root: Path) -> list[int]:
    """Ask running servers to re-read the store; returns the process ids of servers that did not confirm it in time."""
    silent = []
    for path in _sockets(root):
        try:
            connection = _connect(path)
        except BlockingIOError:  # it hangs and takes no more connections
            silent.append(_process_number(path))
            continue
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


def _ask_about(connection: socket.socket) -> dict[str, Any]:
    """The server's description of what it serves; empty if it does not answer."""
    connection.settimeout(ABOUT_SECONDS)
    try:
        connection.sendall(ABOUT)
        with connection.makefile("rb") as answer:
            found = json.loads(answer.readline(MAX_ABOUT_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sockets(root: Path) -> list[Path]:
    return sorted(path for path in (root / FOLDER).glob(f"*{SUFFIX}") if _process_part(path).isdigit())


def _process_number(path: Path) -> int:
    return int(_process_part(path))


def _process_part(path: Path) -> str:
    return path.stem.partition("-")[0]


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # if the queue of a hanging server is full, connecting raises BlockingIOError at once, without this timeout
    connection.settimeout(ABOUT_SECONDS)
    try:
        with short_path(path) as place:
            connection.connect(place)
    except OSError:
        connection.close()
        raise
    return connection
