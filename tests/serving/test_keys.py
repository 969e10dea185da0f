"""Keys: each opens the models that it names; the others might as well not be there."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mta_cli.pipeline.users.serve_keys import KeyFile
from mta_cli.serving.access import Access, is_loopback
from mta_cli.serving.errors import ApiError
from tests.pipeline.users.test_serve_keys import of_an_earlier_version
from tests.serving.conftest import Start
from tests.serving.running import Running, ask


@pytest.fixture
def keyed(start: Start, tmp_path: Path) -> tuple[Running, str, str]:
    """A server with a key for alice and bob, and one for all users."""
    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    few, every = keys.add("few", ["alice", "bob"]), keys.add("all", None)
    keys.write(path)
    return start(keys=path), few, every


def with_key(running: Running, key: str) -> Running:
    """The same server, asked with a key."""
    running.headers = {"authorization": f"Bearer {key}"}
    return running


def test_without_a_right_key_nothing_is_told(keyed: tuple[Running, str, str]) -> None:
    running, few, _ = keyed
    for header in ({}, {"authorization": few}, {"authorization": f"Bearer {few}x"}, {"authorization": "Bearer"}):
        for answered in (
            running.get("/models", headers=header),
            running.post("/chat/completions", ask("alice", "Hi"), headers=header),
        ):
            assert answered.status_code == 401 and answered.json()["error"]["code"] == "invalid_api_key"
            assert "alice" not in answered.text
    assert running.get("/../health").status_code == running.get("/../ready").status_code == 200
    assert running.get("/../metrics").status_code == 401


def test_a_key_opens_the_users_that_it_names(keyed: tuple[Running, str, str]) -> None:
    running, few, every = keyed
    own = with_key(running, few)
    assert [one["id"] for one in own.get("/models").json()["data"]] == ["base", "alice", "bob"]
    assert own.chat("alice", "Hi")["mta"]["anchors"] == [None, None], "who they are is not for this key"
    unknown = own.post("/chat/completions", ask("nobody", "Hi"))
    for name in ("carol", "dave", "carol/free"):
        there = own.post("/chat/completions", ask(name, "Hi"))
        assert there.status_code == 404 and there.text == unknown.text.replace("nobody", name)
        assert own.get(f"/models/{name}").status_code == 404
    assert with_key(running, every).chat("carol", "Hi")["mta"]["mode"] == "common"
    assert with_key(running, every).chat("alice", "Hi")["mta"]["anchors"] == ["dave", "erin"]


def test_a_user_who_is_there_takes_no_longer_to_be_refused(keyed: tuple[Running, str, str]) -> None:
    """The store is not asked about a user whom the key does not name."""
    running, few, _ = keyed
    own, asked = with_key(running, few), list[str]()
    find = running.service._models.reg.users.find
    running.service._models.reg.users.find = lambda name: asked.append(name) or find(name)
    for name in ("carol", "nobody", "alice"):
        own.get(f"/models/{name}")
    assert asked == ["alice"]


@pytest.mark.parametrize("earlier", [False, True])
def test_wrong_keys_keep_nobody_waiting_who_has_a_right_one(start: Start, tmp_path: Path, earlier: bool) -> None:
    """Neither before the right one was asked first, nor after the file was read again."""
    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    right = keys.add("one", ["alice"])
    if earlier:
        of_an_earlier_version(keys)
        right = right[:13] + "a" * 43
    keys.write(path)
    running = start(keys=path)

    def status(key: str) -> int:
        return running.get("/models", headers={"authorization": f"Bearer {key}"}).status_code

    ended = threading.Event()

    def send_wrong(n: int) -> set[int]:
        found = set()
        while not ended.is_set():
            found.add(status(f"mta-{n:08x}-" + "b" * 43))
        return found

    with ThreadPoolExecutor(24) as pool:
        wrong = [pool.submit(send_wrong, n) for n in range(24)]
        try:
            for _ in range(5):
                assert status(right) == 200
                running.access.reread()
        finally:
            ended.set()
        assert [one.result() for one in wrong] == [{401}] * 24


def test_a_file_without_keys_opens_nothing(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    keys.add("one", None)
    keys.remove("one")
    keys.write(path)
    running = start(keys=path)
    assert running.get("/models").status_code == 401
    path.unlink()
    running.access.reread()
    assert running.get("/models").status_code == 401, "there were keys"


@pytest.mark.parametrize(
    "header",
    [
        "evil.example",
        "evil.example:8000",
        "",
        "127.0.0.1.evil.example",
        "[::2]:80",
        "0.0.0.0",
        "[127.0.0.1].evil.example",
        "[::1]evil.example",
        "127.0.0.1:evil.example",
        "localhost:80:80",
        "[::1]:",
        "[::1",
    ],
)
def test_a_rebound_name_of_a_web_page_is_refused(served: Running, header: str) -> None:
    answered = served.get("/models", headers={"host": header})
    assert answered.status_code == 403 and answered.json()["error"]["code"] == "forbidden_host"
    assert served.get("/../metrics", headers={"host": header}).status_code == 403


def test_a_proxy_that_passes_its_host_on_is_answered_where_keys_are_needed(keyed: tuple[Running, str, str]) -> None:
    running, few, _ = keyed
    assert with_key(running, few).get("/models", headers={"host": "mta.example"}).status_code == 200
    running.headers = {}
    assert running.get("/models", headers={"host": "mta.example"}).status_code == 401


@pytest.mark.parametrize("header", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9", "[::1]:8000"])
def test_names_of_this_machine(header: str) -> None:
    no_file = partial(KeyFile, "", is_there=False)
    Access("127.0.0.1", no_file).refuse_foreign_host(header)
    Access("0.0.0.0", no_file).refuse_foreign_host("any.example")
    with pytest.raises(ApiError):
        Access("::1", no_file).refuse_foreign_host("any.example")
    assert is_loopback("127.3.4.5") and not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_one_key_does_not_take_everybodys_place(start: Start, tmp_path: Path) -> None:
    from mta_cli.options import ServeOptions

    path = tmp_path / "keys.json"
    keys = KeyFile.read(path)
    first, second = keys.add("one", None), keys.add("two", None)
    keys.write(path)
    running = start(keys=path, options=ServeOptions(streams=1))
    running.service._engine.submit = lambda answers: None  # no request is answered: the first stream stays open
    waiting = _Waiting(running, first)
    try:
        assert with_key(running, first).get("/models").status_code == 429
        assert with_key(running, second).get("/models").status_code == 200
    finally:
        waiting.leave()
    for _ in range(200):
        if (answered := with_key(running, first).get("/models")).status_code == 200:
            return
        time.sleep(0.05)
    raise AssertionError(answered.text)


class _Waiting:
    """A stream that has begun and is not read."""

    def __init__(self, running: Running, key: str) -> None:
        import socket

        host, _, port = running.url.removeprefix("http://").removesuffix("/v1").partition(":")
        body = json.dumps(ask("base", "Hi", stream=True)).encode()
        self._socket = socket.create_connection((host, int(port)))
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        assert self._socket.recv(15).startswith(b"HTTP/1.1 200")

    def leave(self) -> None:
        """Close it."""
        self._socket.close()


def test_pages_of_other_origins_are_told_nothing_unless_they_are_named(start: Start) -> None:
    from mta_cli.options import ServeOptions

    asked: dict[str, Any] = {"headers": {"origin": "https://page.example"}}
    assert "access-control-allow-origin" not in start().get("/models", **asked).headers
    named = start(options=ServeOptions(cors="https://page.example"))
    assert named.get("/models", **asked).headers["access-control-allow-origin"] == "https://page.example"
    assert (
        "access-control-allow-origin" not in named.get("/models", headers={"origin": "https://other.example"}).headers
    )
