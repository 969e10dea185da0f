"""Asks a server that speaks OpenAI's interface, as `mta serve` does, over its address or over a socket of its store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from mta_cli.errors import BadInput, Command, Flag, MtaError, NotFound, UsageError
from mta_cli.events import TextChunk

CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
UNKNOWN_URL = "unknown_url"  # the code of an address that the server does not have
TOO_LONG = ("context_length_exceeded", "request_too_large", "array_above_max_length")  # error codes
ADDRESS_HINT = ("the address of a server ends in /v1: ", Flag("server", "http://127.0.0.1:8000/v1"))


class WindowFull(BadInput):
    """The messages do not fit into the model's window, or are more than the server takes."""


class ServerGone(MtaError):
    """Nothing answers at the server's address."""


@dataclass
class RemoteAnswer:
    """One answer of a server while it grows.

    `ended` is empty until it is complete; `source` is what the server says of it: a model's mode, task, bank and
    anchors, and each label's log-probability under `labels`.
    """

    text: str = ""
    ended: str = ""
    tokens: int = 0
    source: dict[str, Any] = field(default_factory=dict)

    def read(self, pieces: Iterable[Mapping[str, Any]]) -> Iterator[TextChunk]:
        """Add the pieces of a stream; yields their texts as they come."""
        for piece in pieces:
            self.source = piece.get("mta") or self.source
            self.tokens = (piece.get("usage") or {}).get("completion_tokens", self.tokens)
            for choice in piece.get("choices", ()):
                repeats = choice.get("stop_reason") == "repetition"
                self.ended = "repetition" if repeats else choice.get("finish_reason") or self.ended
                if chunk := (choice.get("delta") or {}).get("content"):
                    self.text += chunk
                    yield TextChunk(chunk)


class ServerClient:
    """Requests to one server. `url` ends in `/v1`; with `socket`, the host in `url` is not used."""

    def __init__(self, url: str, *, key: str | None = None, socket: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                (Flag("server", url[:100]), " is not an address."), hint=Flag("server", "http://127.0.0.1:8000/v1")
            )
        self.url = url.rstrip("/")
        self._client = httpx.Client(
            base_url=self.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            transport=None if socket is None else httpx.HTTPTransport(uds=socket),
        )

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path. Raises NotFound, BadInput, UsageError or MtaError with the server's reason."""
        with self._explained():
            answered = self._client.get(path)
        self._require_success(answered)
        found: dict[str, Any] = answered.json()
        return found

    def model(self, name: str) -> dict[str, Any]:
        """What the server says of a model; empty for a server of another kind."""
        return self.get(f"/models/{quote(name, safe='/')}").get("mta") or {}

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The pieces of the answer to a chat request. Raises WindowFull where the messages do not fit."""
        with self._explained(), self._client.stream("POST", "/chat/completions", json=body) as answered:
            if answered.status_code >= 400:
                answered.read()
            self._require_success(answered)
            for line in answered.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    piece = json.loads(line.removeprefix("data: "))
                    if "error" in piece:
                        raise MtaError(str(piece["error"].get("message")))
                    yield piece

    def add_item(self, model: str, task: str | None, question: str, answer: str) -> str:
        """Append an item to the history of the user of a model, and return its key. Raises UsageError where the server
        lets no client write.
        """
        body = {"input": question, "output": answer}
        user, slash, own_task = model.rpartition("/")
        with self._explained():
            told = self._post_item(model, task, body)
            if told.status_code == 404 and slash:  # a model's name can be a user's or USER/TASK
                told = self._post_item(user, own_task, body)
        if told.status_code == 404 and UNKNOWN_URL in told.text:
            raise UsageError(
                "The server does not let its clients write.", hint=("start it with ", Command("serve", write=True))
            )
        self._require_success(told)
        return str(told.json()["key"])

    def _post_item(self, user: str, task: str | None, body: dict[str, str]) -> httpx.Response:
        path = f"/users/{quote(user, safe='/')}/items"
        return self._client.post(path, json=body | ({"task": task} if task else {}))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Inside, a server that cannot be reached is ServerGone with its address."""
        try:
            yield
        except httpx.HTTPError as error:
            message = f"{self.url} does not answer: {error}"
            raise ServerGone(message, hint=("is ", Command("serve"), " running?")) from error

    def _require_success(self, answered: httpx.Response) -> None:
        if answered.status_code < 400:
            return
        try:
            error = answered.json()["error"]
            message, code = str(error["message"]), error.get("code")
        except (ValueError, KeyError, TypeError, AttributeError):
            message, code = f"The server answered {answered.status_code}.", None
        if code in TOO_LONG or answered.status_code == 413:
            raise WindowFull(message)
        if answered.status_code == 404:
            hint = ADDRESS_HINT if code in (None, UNKNOWN_URL) else "/user NAME chooses another model"
            raise NotFound(message, hint=hint)
        if answered.status_code == 401:
            raise UsageError(message, hint="set MTA_SERVER_KEY to a key of this server")
        raise BadInput(message) if answered.status_code < 500 else MtaError(message)
