"""Runs the server: the web server, the socket beside the store, and signals."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from mta_cli.errors import BadInput, Flag, system_reason
from mta_cli.pipeline.users.serve_keys import KeyFile
from mta_cli.pipeline.users.servers import (
    ABOUT,
    DONE,
    RECHECK,
    http_path,
    new_socket_path,
    remove_dead_sockets,
    short_path,
)
from mta_cli.serving.access import Access
from mta_cli.serving.app import build_app
from mta_cli.serving.connections import LimitedConnection
from mta_cli.serving.jobs import AdaptJobs
from mta_cli.serving.service import Service

BACKLOG = 128
STOP_SECONDS = 1.0  # for answers that still run after the web servers have stopped
log = logging.getLogger("mta.serve")


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises BadInput with the system's reason."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=False)
    except OSError as error:
        raise BadInput(
            f"The server cannot listen on {host}:{port}: {system_reason(error)}.",
            hint=("choose another ", Flag("port"), ", or ", Flag("port", "0"), " for a free one"),
        ) from error


def web_server(service: Service, access: Access, jobs: AdaptJobs | None) -> uvicorn.Server:
    """A web server for `service`. It leaves signals to `Server`. Without `jobs`, clients cannot write."""
    config = uvicorn.Config(
        build_app(service, access, jobs),
        http=LimitedConnection,
        access_log=False,
        log_config=None,
        lifespan="off",
        server_header=False,
        backlog=BACKLOG,  # also how often asyncio fails and logs in a row if no file descriptor is free
        timeout_graceful_shutdown=max(1, int(service.options.drain)),
        h11_max_incomplete_event_size=64 * 1024,
    )
    web = uvicorn.Server(config)
    web.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    return web


class Server:
    """One server on a bound socket, until a signal ends it. `on_ready` is called once the model is loaded."""

    def __init__(
        self, service: Service, access: Access, jobs: AdaptJobs | None, root: Path, on_ready: Callable[[], None]
    ) -> None:
        self._service, self._access, self._jobs = service, access, jobs
        self._root, self._on_ready = root, on_ready
        self._socket = new_socket_path(root)
        self._http_socket = http_path(self._socket)
        self._end, self._ended_by = asyncio.Event(), ""

    async def run(self, bound: socket.socket) -> str:
        """Serve until SIGTERM, SIGINT or SIGQUIT, and return the signal's name. SIGHUP reads the keys again.

        Raises the errors of `Service.start`, and BadInput if the socket beside the store cannot be made.
        """
        self._handle_signals()
        control = await self._open_control()
        doors = [(web_server(self._service, self._access, self._jobs), bound)]
        serving: list[asyncio.Task[None]] = []
        try:
            if control is not None:
                # a process that may open this socket may read the store itself, so no key is needed
                no_keys = Access("localhost", lambda: KeyFile(secrets.token_hex(16), is_there=False))
                doors.append((web_server(self._service, no_keys, None), self._bind_http_socket()))
            serving += [asyncio.create_task(web._serve([door])) for web, door in doors]
            await self._service.start()
            self._on_ready()
            await self._end.wait()
            log.info("stopping: running answers have %g s to end", self._service.options.drain)
        finally:
            self._service.ready = False
            for web, _ in doors:
                web.should_exit = True
            await asyncio.gather(*serving, return_exceptions=True)  # running answers finish, new requests are refused
            await self._service.stop(STOP_SECONDS)
            if self._jobs is not None:
                self._jobs.stop()
            if control is not None:
                control.close()
                self._http_socket.unlink(missing_ok=True)
                self._socket.unlink(missing_ok=True)
        return self._ended_by

    def _bind_http_socket(self) -> socket.socket:
        """A bound socket beside the store, for requests of the store's owner, who needs no key. Raises BadInput."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self._http_socket) as place:
                door.bind(place)
                os.chmod(place, 0o600)
        except OSError as error:
            door.close()
            raise _no_socket(self._http_socket, error) from error
        return door

    def _finish(self, name: str) -> None:
        self._ended_by = name
        self._end.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGINT", "SIGQUIT"):
            loop.add_signal_handler(getattr(signal, name), self._finish, name)
        loop.add_signal_handler(signal.SIGHUP, self._reread)

    def _reread(self) -> None:
        try:
            self._access.reread()
            log.info("%d keys were read again", len(self._access.keys))
        except Exception as error:
            log.error("the file of keys cannot be read, so the keys stay as they were: %s", error)

    async def _open_control(self) -> asyncio.AbstractServer | None:
        """The control socket beside the store; None for a read-only store. Raises BadInput with the reason."""
        unnamed = self._socket.with_suffix(".new")
        try:
            unnamed.parent.mkdir(mode=0o700, exist_ok=True)
            remove_dead_sockets(self._root)
            with short_path(unnamed) as place:
                server = await asyncio.start_unix_server(self._answer_control, place)
                os.chmod(place, 0o600)
            # renamed only once it listens, so a socket with this name that refuses connections is a killed server's
            unnamed.rename(self._socket)
        except OSError as error:
            if os.access(self._root, os.W_OK):
                raise _no_socket(self._socket, error) from error
            log.warning("The store is read-only: `mta user rm` cannot tell this server to drop a user's data.")
            return None
        return server

    async def _answer_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a control connection: re-read store and keys and confirm it, or say what is served."""
        with suppress(ConnectionError):
            asked = await reader.readline()
            if asked == ABOUT:
                writer.write(json.dumps(self._service.about()).encode() + b"\n")
                await writer.drain()
            if asked == RECHECK:
                self._reread()
                await self._service.recheck()
                if self._jobs is not None:
                    users = self._jobs.users
                    self._jobs.drop_users(users - await self._service.existing_users(users))
                writer.write(DONE)
                await writer.drain()
            writer.close()


def _no_socket(path: Path, error: OSError) -> BadInput:
    return BadInput(
        f"The server's socket {path} cannot be made: {system_reason(error)}.",
        hint="check the permissions of the store's directory",
    )
