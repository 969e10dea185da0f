"""Asks a server that speaks OpenAI's interface, as `mta serve` does, over its address or over a socket of its store.

A server's replies are untrusted: they are read by the types below, and up to limits of size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from mta_cli.errors import BadInput, Command, Flag, MtaError, NotFound, UsageError
from mta_cli.events import TextChunk

CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
MAX_REPLY_BYTES, MAX_LINE_BYTES, MAX_STREAM_BYTES = 2**24, 2**20, 2**26
MAX_MESSAGE_CHARS = 500
UNKNOWN_URL = "unknown_url"  # the code of an address that the server does not have
TOO_LONG = ("context_length_exceeded", "request_too_large", "array_above_max_length")  # error codes
ADDRESS_HINT = ("the address of a server ends in /v1: ", Flag("server", "http://127.0.0.1:8000/v1"))
T = TypeVar("T")


class Told(msgspec.Struct):
    """What `mta serve` says of a model or an answer, as far as it is used here."""

    prompt: str = "chat"
    mode: str = "server"
    task: str | None = None
    bank: str | None = None
    version: int | None = None
    anchors: list[str | None] = []
    labels: dict[str, float] | None = None
    memory: bool | str | None = None  # of an answer: whether label memory counted; of a model: its kind
    own_examples: Annotated[int, msgspec.Meta(ge=0)] = 0
    dropped_messages: Annotated[int, msgspec.Meta(ge=0)] = 0


class Delta(msgspec.Struct):
    """What a piece adds to an answer."""

    content: str | None = None


class Choice(msgspec.Struct):
    """A piece of one answer."""

    delta: Delta | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Usage(msgspec.Struct):
    """How many tokens were counted."""

    completion_tokens: int = 0


class Fault(msgspec.Struct):
    """A server's error."""

    message: str = ""
    code: str | int | None = None


class Failure(msgspec.Struct):
    """A reply that is an error."""

    error: Fault | str


class StreamPiece(msgspec.Struct):
    """One piece of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    mta: dict[str, Any] | None = None
    told: Told | None = None  # `mta` by its types
    error: Fault | str | None = None


class ModelReply(msgspec.Struct):
    """A model of the server; other servers have no `mta`."""

    mta: Told | None = None


class ModelName(msgspec.Struct):
    """A model in a list."""

    id: str


class ModelList(msgspec.Struct):
    """The models of the server."""

    data: list[ModelName]


class SavedItem(msgspec.Struct):
    """A history item that the server has kept."""

    key: str


class WindowFull(BadInput):
    """The messages do not fit into the model's window, or are more than the server takes."""


class ServerGone(MtaError):
    """Nothing answers at the server's address."""


@dataclass
class RemoteAnswer:
    """One answer of a server while it grows.

    `ended` is empty until it is complete; `source` is what the server says of it, and `told` the part that is used.
    """

    text: str = ""
    ended: str = ""
    tokens: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    told: Told = field(default_factory=Told)

    def read(self, pieces: Iterable[StreamPiece]) -> Iterator[TextChunk]:
        """Add the pieces of a stream, and give their texts as they come."""
        for piece in pieces:
            if piece.mta and piece.told:
                self.source, self.told = piece.mta, piece.told
            self.tokens = piece.usage.completion_tokens if piece.usage else self.tokens
            for choice in piece.choices:
                self.ended = "repetition" if choice.stop_reason == "repetition" else choice.finish_reason or self.ended
                if choice.delta is not None and choice.delta.content:
                    self.text += choice.delta.content
                    yield TextChunk(choice.delta.content)


class ServerClient:
    """Requests to one server. `url` ends in `/v1`; with `socket`, its host is not used.

    Every method raises NotFound, BadInput, UsageError or MtaError, in one line that names the address.
    """

    def __init__(self, url: str, *, key: str | None = None, socket: str | None = None) -> None:
        self.url = url.rstrip("/")
        try:
            if not url.startswith(("http://", "https://")):
                raise httpx.InvalidURL("")
            self._client = httpx.Client(
                base_url=self.url,
                headers={"accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {}),
                timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
                transport=None if socket is None else httpx.HTTPTransport(uds=socket),
            )
        except (httpx.InvalidURL, ValueError):
            raise UsageError(
                (Flag("server", url[:100]), " is not an address."), hint=Flag("server", "http://127.0.0.1:8000/v1")
            ) from None

    def model_names(self) -> list[str]:
        """The models that the server lists."""
        return [one.id for one in self._get("/models", ModelList).data]

    def model(self, name: str) -> Told | None:
        """What the server says of a model; None for a server of another kind."""
        return self._get(f"/models/{quote(name, safe='/')}", ModelReply).mta

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[StreamPiece]:
        """The pieces of the answer to a chat request. Raises WindowFull where the messages do not fit."""
        with self._explained(), self._client.stream("POST", "/chat/completions", json=body) as answered:
            self._require_success(answered)
            for line in _lines(answered):
                if line.startswith(b"data:") and (content := line[5:].strip()) != b"[DONE]":
                    piece = msgspec.json.decode(content, type=StreamPiece)
                    if piece.error is not None:
                        raise MtaError(self._worded(piece.error))
                    piece.told = msgspec.convert(piece.mta, Told) if piece.mta else None
                    yield piece

    def add_item(self, model: str, task: str | None, question: str, answer: str) -> str:
        """Append an item to the history of the user of a model, and return its key. Raises UsageError where the server
        lets no client write.
        """
        body = {"input": question, "output": answer}
        user, slash, own_task = model.rpartition("/")
        try:
            return self._post_item(model, task, body)
        except NotFound:  # as the server reads a model's name: a user first, then USER/TASK
            if not slash:
                raise
            return self._post_item(user, own_task, body)

    def _post_item(self, user: str, task: str | None, body: dict[str, str]) -> str:
        body |= {"task": task} if task else {}
        path = f"/users/{quote(user, safe='/')}/items"
        with self._explained(), self._client.stream("POST", path, json=body) as answered:
            self._require_success(answered, writes=True)
            return msgspec.json.decode(_whole(answered), type=SavedItem).key

    def _get(self, path: str, kind: type[T]) -> T:
        with self._explained(), self._client.stream("GET", path) as answered:
            self._require_success(answered)
            return msgspec.json.decode(_whole(answered), type=kind)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Inside, a server that cannot be reached is ServerGone, and a reply of another form a BadInput."""
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerGone(
                f"{self.url} does not answer: {error}", hint=("is ", Command("serve"), " running?")
            ) from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            words = (f"{self.url} does not answer as ", Command("serve"), f" does: {error}")
            raise BadInput(words, hint=ADDRESS_HINT) from error

    def _require_success(self, answered: httpx.Response, *, writes: bool = False) -> None:
        if answered.is_success:
            return
        try:
            error = msgspec.json.decode(_whole(answered), type=Failure).error
        except (msgspec.MsgspecError, ValueError, RecursionError):
            error = Fault(f"status {answered.status_code}")
        message, code = self._worded(error), error.code if isinstance(error, Fault) else None
        if code in TOO_LONG or answered.status_code == 413:
            raise WindowFull(message)
        if writes and code == UNKNOWN_URL:
            raise UsageError(
                f"{self.url} does not let its clients write.", hint=(Command("serve", write=True), " does")
            )
        if answered.status_code == 404:
            hint = ADDRESS_HINT if code in (None, UNKNOWN_URL) else "/user NAME chooses another model"
            raise NotFound(message, hint=hint)
        if answered.status_code == 401:
            raise UsageError(message, hint="set MTA_SERVER_KEY to a key of this server")
        raise BadInput(message) if answered.status_code < 500 else MtaError(message)

    def _worded(self, error: Fault | str) -> str:
        """A server's error in one line."""
        message = error if isinstance(error, str) else error.message
        return f"{self.url}: {' '.join(message.split())[:MAX_MESSAGE_CHARS] or 'an error without words'}"


def _whole(answered: httpx.Response) -> bytes:
    """The body of a reply. Raises ValueError above the most bytes."""
    content = bytearray()
    for piece in answered.iter_raw():
        content += piece
        if len(content) > MAX_REPLY_BYTES:
            raise ValueError(f"a reply of more than {MAX_REPLY_BYTES:,} bytes")
    return bytes(content)


def _lines(answered: httpx.Response) -> Iterator[bytes]:
    """The lines of a stream. Raises ValueError above the most bytes of a line and of all."""
    rest, total = b"", 0
    for piece in answered.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        total += len(piece)
        if max(map(len, (*lines, rest))) > MAX_LINE_BYTES or total > MAX_STREAM_BYTES:
            raise ValueError("a line or a stream without an end")
        yield from lines
    yield rest
