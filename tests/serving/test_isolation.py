"""No user's text in other users' answers or in logs, and requests that no client would send."""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import string
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mta_cli.options import ServeOptions
from tests.serving.conftest import Start
from tests.serving.running import Running, ask

CANARY = "zebrafish-quorum-"


def test_no_ones_words_are_in_anyone_elses_answer(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    """The tiny base says bytes at random: it would repeat what it were shown only where a prompt were mixed up."""
    caplog.set_level(logging.DEBUG)
    names = ("alice", "bob", "carol", "base")
    plain = [ask(name, "What is it about?", max_tokens=8, logprobs=True, top_logprobs=5) for name in names]
    before = [served.post("/chat/completions", body).json()["choices"] for body in plain]
    loud = [ask(name, f"{CANARY}{name} " * 30, max_tokens=8) for name in names for _ in range(4)]
    with ThreadPoolExecutor(24) as pool:
        noise = pool.map(lambda body: served.post("/chat/completions", body), loud)
        after = list(pool.map(lambda body: served.post("/chat/completions", body), plain * 2))
        noise_texts = [one.text for one in noise]
    assert all(CANARY not in one.text for one in after) and all(CANARY not in text for text in noise_texts)
    for n, one in enumerate(after):
        tokens = [entry["token"] for entry in one.json()["choices"][0]["logprobs"]["content"]]
        assert tokens == [entry["token"] for entry in before[n % len(names)][0]["logprobs"]["content"]]
    assert CANARY not in caplog.text and not any(name in caplog.text for name in ("alice", "bob", "carol"))


def test_log_text_adds_the_last_message_of_a_chat_and_no_other_text(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mta.serve")
    served = start(options=ServeOptions(log_text=True))
    turns = [
        {"role": "user", "content": f"{CANARY}first"},
        {"role": "assistant", "content": f"{CANARY}answer"},
        {"role": "user", "content": f"{CANARY}last"},
    ]
    assert served.post("/chat/completions", {"model": "alice", "messages": turns}).status_code == 200
    assert served.post("/completions", {"model": "alice", "prompt": f"{CANARY}prompt"}).status_code == 200
    assert re.findall(f"{CANARY}\\w+", caplog.text) == [f"{CANARY}last"] and "alice" not in caplog.text


def test_the_line_of_a_stream_has_the_time_until_its_end(
    served: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, passed = served.service.pieces, list[bool]()

    async def pieces(*given: Any) -> AsyncIterator[Any]:
        async for piece in whole(*given):
            yield piece
        passed.append("POST" in caplog.text)

    caplog.set_level(logging.INFO, "mta.serve")
    monkeypatch.setattr(served.service, "pieces", pieces)
    served.stream(ask("alice", "Hi", max_tokens=2))
    for _ in range(100):
        if "POST /v1/chat/completions 200" in caplog.text:
            break
        time.sleep(0.05)
    assert passed == [False] and caplog.text.count("POST /v1/chat/completions 200") == 1


def test_a_prefix_of_one_user_is_not_anothers(served: Running) -> None:
    """The same conversation with two users: each beginning is kept for its own user."""
    text = "the same long question for everybody, word for word, twice"
    first = [served.chat(name, text, logprobs=True)["choices"] for name in ("alice", "bob")]
    again = [served.chat(name, text, logprobs=True)["choices"] for name in ("bob", "alice")][::-1]
    for one, other in zip(first, again, strict=True):
        assert one[0]["message"] == other[0]["message"]
    assert served.service._engine._prefixes.hits >= 2


def nonsense(draw: random.Random, depth: int = 0) -> Any:
    """A JSON value that a client would hardly send."""
    kinds = [
        lambda: None,
        lambda: draw.choice([True, False]),
        lambda: draw.choice([0, -1, 1, 2**70, -(2**70), 0.5, 1e308, 17]),
        lambda: "".join(draw.choices(string.printable + "\0\u202e\ud7ff😀", k=draw.randrange(12))),
        lambda: draw.choice(["alice", "user", "system", "text", "base", "../..", "free"]),
    ]
    if depth < 3:
        kinds += [
            lambda: [nonsense(draw, depth + 1) for _ in range(draw.randrange(3))],
            lambda: {draw.choice(FIELDS): nonsense(draw, depth + 1) for _ in range(draw.randrange(4))},
        ]
    return draw.choice(kinds)()


FIELDS = [
    "model",
    "messages",
    "role",
    "content",
    "type",
    "text",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "max_tokens",
    "stream",
    "stream_options",
    "tools",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "response_format",
    "json_schema",
    "schema",
    "include_usage",
    "task",
    "prompt",
    "input",
    "user",
]


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/embeddings"])
def test_bodies_of_every_kind_are_refused_or_answered(served: Running, path: str) -> None:
    draw, counts = random.Random(path), dict[int, int]()
    needed = {"/chat/completions": ask("alice", "Hi"), "/completions": {"model": "alice", "prompt": "Hi"}}
    for _ in range(150):
        body = {**needed.get(path, {"model": "tiny-embedder", "input": "Hi"}), "max_tokens": 2}
        if path == "/embeddings":
            del body["max_tokens"]
        for _ in range(draw.randrange(1, 3)):
            body[draw.choice(FIELDS)] = nonsense(draw)
        answered = served.post(path, body)
        counts[answered.status_code] = counts.get(answered.status_code, 0) + 1
        assert answered.status_code in (200, 400, 404), (body, answered.text)
        if answered.status_code != 200:
            assert {"message", "type", "param", "code"} == set(answered.json()["error"])
    assert counts.get(400, 0) > 50 and counts.get(200, 0) > 3
    assert served.text("alice", "Hi")
    served.wait_until_idle()


def test_bytes_that_are_no_request_disturb_nobody(served: Running) -> None:
    draw = random.Random(1)
    host, _, port = served.url.removeprefix("http://").removesuffix("/v1").partition(":")
    body = json.dumps(ask("alice", "Hi")).encode()
    head = ("POST /v1/chat/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
    good = "\r\n".join((*head, f"Content-Length: {len(body)}", "", ""))
    for n in range(60):
        raw = bytearray(good.encode() + body)
        for _ in range(draw.randrange(1, 6)):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(bytes(raw[: draw.randrange(1, len(raw))] if n % 2 else raw))
            client.shutdown(socket.SHUT_WR)
            client.settimeout(10)
            said = client.recv(12)
        assert said == b"" or said.startswith(b"HTTP/1.1 "), said
        assert not said.startswith(b"HTTP/1.1 500")
    assert served.text("alice", "Hi")


@pytest.mark.parametrize("header", ["authorization", "content-type", "host", "origin", "x-forwarded-for", "cookie"])
def test_headers_of_every_kind(served: Running, header: str) -> None:
    draw = random.Random(header)
    for _ in range(20):
        value = "".join(
            draw.choices(string.ascii_letters + string.digits + " /.:;,=-_%*[]{}", k=draw.randrange(1, 60))
        ).strip()
        answered = served.get("/models", headers={header: value or "x"})
        assert answered.status_code in (200, 400, 403), answered.text
