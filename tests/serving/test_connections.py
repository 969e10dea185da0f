"""What clients without a key can take: connections, time for a request's head, lines of the log."""

from __future__ import annotations

import logging
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from mta_cli.serving import app, connections
from mta_cli.serving.connections import OncePerSecond
from tests.serving.conftest import Start
from tests.serving.running import Process, Running, ask

HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: "


def connect(url: str) -> socket.socket:
    """A connection to a server."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def seconds_until_closed(client: socket.socket) -> float:
    """How long the server keeps a connection, of which everything is read."""
    began = time.monotonic()
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - began


@contextmanager
def half_sent(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Requests whose heads do not end."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(url)) for _ in range(count)]
        for client in clients:
            client.sendall(HALF)
        yield clients


def open_streams(running: Running, count: int) -> list[socket.socket]:
    """Streams of which nothing is answered, since the engine gets no request."""
    running.service._engine.submit = lambda answers: None
    body = httpx.Request("POST", running.url, json=ask("base", "Hi", stream=True)).content
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    streams = [connect(running.url) for _ in range(count)]
    for stream in streams:
        stream.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert stream.recv(15).startswith(b"HTTP/1.1 200")
    return streams


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(HALF, id="half of a head"),
        pytest.param(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /", id="half of the second head"),
        pytest.param(
            b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", id="half of a refused body"
        ),
    ],
)
def test_a_client_that_does_not_send_its_request_is_left(
    served: Running, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with connect(served.url) as client:
        client.sendall(sent)
        assert 0.3 < seconds_until_closed(client) < 4, "before uvicorn's own 5 s without a byte"


def test_a_byte_now_and_then_gains_no_time(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with connect(served.url) as client, pytest.raises(OSError):
        client.sendall(HALF)
        for _ in range(100):
            time.sleep(0.1)
            client.sendall(b"x")


def test_a_body_has_its_time_too(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    with connect(served.url) as client:
        client.sendall(HALF + b"y\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert client.recv(12) == b"HTTP/1.1 408"


def test_an_answer_may_take_longer_than_a_head(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    (stream,) = open_streams(served, 1)
    with stream:
        stream.settimeout(1.5)
        with pytest.raises(TimeoutError):
            while stream.recv(65536):
                pass


def test_half_sent_requests_keep_nobody_out(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    with half_sent(served.url, 60) as clients:
        assert served.get("/../health").status_code == 200
        assert served.chat("alice", "Hi", max_tokens=2)["choices"]
        for client in clients[:40]:
            assert seconds_until_closed(client) < 5, "the oldest were closed"


def test_above_the_most_requests_one_is_told_to_come_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    served = start()
    with ExitStack() as stack:
        for stream in open_streams(served, 4):
            stack.enter_context(stream)
        with half_sent(served.url, 10):
            refused = served.get("/models")
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "too_many_requests"
            assert int(refused.headers["retry-after"]) > 0
            assert served.get("/../health").status_code == served.get("/../ready").status_code == 200


def test_more_clients_than_files_stop_nothing_and_fill_no_log(process: Process) -> None:
    resource.prlimit(process.process.pid, resource.RLIMIT_NOFILE, (200, 200))
    with half_sent(process.url, 400):
        for _ in range(3):
            assert httpx.get(f"{process.url[:-3]}/health", timeout=10).status_code == 200
        answered = httpx.post(f"{process.url}/chat/completions", json=ask("base", "Hi", max_tokens=1), timeout=60)
        assert answered.status_code == 200
    code, said = process.end()
    assert code == 0 and len(said.splitlines()) < 40, said[-3000:]


def test_of_a_second_one_line_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sparse = [100.0], OncePerSecond()
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    records = [logging.LogRecord("x", logging.ERROR, "", 0, "no %s", ("files",), None) for _ in range(3)]
    assert [sparse.filter(record) for record in records] == [True, False, False]
    now[0] += 1
    assert sparse.filter(records[0]) and records[0].getMessage() == "no files (2 more were left out)"


def test_a_request_that_anybody_can_send_is_logged_where_lines_are_bounded(
    served: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mta.serve")
    served.get("/models", headers={"host": "evil.example"})
    served.get("/../docs")
    served.get("/models")
    found = [(record.name, record.getMessage().split()[2]) for record in caplog.records]
    assert found == [(app.STRANGERS, "403"), (app.STRANGERS, "200"), ("mta.serve", "200")]
