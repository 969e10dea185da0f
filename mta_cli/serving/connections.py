"""Limits that hold before a key is checked: open connections, seconds for a request's head, and lines of the log."""

from __future__ import annotations

import asyncio
import logging
import resource
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10  # for a request's head, counted from the start of the connection or from the previous answer
LOG_SECONDS = 1.0  # between two records of `OncePerSecond`
MAX_CONNECTIONS = 1_000


def most_connections() -> int:
    """The limit of open connections: half of the files that the process may open, at most `MAX_CONNECTIONS`."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if files == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, files // 2)


class LimitedConnection(H11Protocol):
    """A connection of uvicorn that is closed if it does not send the head of a request in time.

    If more than `most_connections` are open, the idle connection with the oldest timer is closed. uvicorn's
    `limit_concurrency` would keep idle connections and refuse all new requests, even `/health`.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio's `Protocol`."""
        super().connection_made(transport)
        self._restart_head_timer()
        if len(self.connections) > most_connections():
            idle = [one for one in self.connections if isinstance(one, LimitedConnection) and one._is_idle()]
            min(idle, key=lambda one: one._timer.when() if one._timer else 0.0).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio's `Protocol`."""
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def on_response_complete(self) -> None:
        """Called by uvicorn after each answer."""
        super().on_response_complete()
        self._restart_head_timer()

    def _restart_head_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._close_without_head)

    def _has_no_open_request(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_idle(self) -> bool:
        """Whether the connection is open, and its client sends no request or does not read the answer."""
        return (self._has_no_open_request() or self.flow.write_paused) and not self.transport.is_closing()

    def _close_without_head(self) -> None:
        if self._has_no_open_request():
            self.transport.abort()


class OncePerSecond(logging.Filter):
    """A log filter that passes one record a second, with the number of records left out before it."""

    def __init__(self) -> None:
        super().__init__()
        self._next, self._left_out = 0.0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass one record a second; the next one that passes says how many were left out."""
        if (now := time.monotonic()) < self._next:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg, record.args = f"{record.getMessage()} ({self._left_out} more were left out)", ()
        self._next, self._left_out = now + LOG_SECONDS, 0
        return True
