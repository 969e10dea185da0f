"""A client for servers with OpenAI's interface, such as `mta serve`, over HTTP at an address or on a Unix socket.

A server's replies are untrusted: the types below check them, and their size is limited.
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
UNKNOWN_URL = "unknown_url"  # the error code for a path that the server does not have
TOO_LONG = ("context_length_exceeded", "request_too_large", "array_above_max_length")  # the server's error codes
ADDRESS_HINT = ("the address of a server ends in /v1: ", Flag("server", "http://127.0.0.1:8000/v1"))
T = TypeVar("T")


class MtaDetails(msgspec.Struct):
    """The object `mta`, which `mta serve` adds to models and answers; only the fields that are used here."""

    prompt: str = "chat"
    mode: str = "server"
    task: str | None = None
    bank: str | None = None
    version: int | None = None
    anchors: list[str | None] = []
    labels: dict[str, float] | None = None
    memory: bool | str | None = None  # of an answer: whether label memory was used; of a model: the kind of memory
    own_examples: Annotated[int, msgspec.Meta(ge=0)] = 0
    dropped_messages: Annotated[int, msgspec.Meta(ge=0)] = 0


class Delta(msgspec.Struct):
    """The text that a piece of a stream adds to an answer."""

    content: str | None = None


class Choice(msgspec.Struct):
    """A piece of one answer."""

    delta: Delta | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class Usage(msgspec.Struct):
    """The number of tokens of an answer."""

    completion_tokens: int = 0


class ServerError(msgspec.Struct):
    """The `error` object in a server's reply."""

    message: str = ""
    code: str | int | None = None


class ErrorReply(msgspec.Struct):
    """A reply that reports an error."""

    error: ServerError | str


class StreamPiece(msgspec.Struct):
    """One piece of a stream."""

    choices: list[Choice] = []
    usage: Usage | None = None
    mta: dict[str, Any] | None = None
    told: MtaDetails | None = None  # `mta` after its types were checked
    error: ServerError | str | None = None


class ModelReply(msgspec.Struct):
    """A model of the server; other servers have no `mta`."""

    mta: MtaDetails | None = None


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
    """The messages do not fit in the model's window, or exceed another limit of the server."""


class ServerUnreachable(MtaError):
    """No server answers at the address."""


@dataclass
class RemoteAnswer:
    """One answer of a server during and after its stream.

    `ended` is the finish reason, empty until the answer is complete. `source` is the server's `mta` object, `told` its
    checked fields.
    """

    text: str = ""
    ended: str = ""
    tokens: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    told: MtaDetails = field(default_factory=MtaDetails)

    def read(self, pieces: Iterable[StreamPiece]) -> Iterator[TextChunk]:
        """Add the pieces of a stream to this answer and yield their texts."""
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
    """Requests to one server. `url` ends in `/v1`. With a Unix socket's path `socket`, the host in `url` is not used.

    Every method raises NotFound, BadInput, UsageError or MtaError with a one-line message that names the address.
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
                (Flag("server", url[:100]), " is not a URL with http:// or https://."),
                hint=Flag("server", "http://127.0.0.1:8000/v1"),
            ) from None

    def model_names(self) -> list[str]:
        """The names of the models that the server lists."""
        return [one.id for one in self._get("/models", ModelList).data]

    def model(self, name: str) -> MtaDetails | None:
        """The `mta` details of a model; None if the server is not `mta serve`."""
        return self._get(f"/models/{quote(name, safe='/')}", ModelReply).mta

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[StreamPiece]:
        """Stream the pieces of the answer to a chat request. Raises WindowFull if the messages do not fit."""
        with self._translate_errors(), self._client.stream("POST", "/chat/completions", json=body) as answered:
            self._require_success(answered)
            for line in _read_lines(answered):
                if line.startswith(b"data:") and (content := line[5:].strip()) != b"[DONE]":
                    piece = msgspec.json.decode(content, type=StreamPiece)
                    if piece.error is not None:
                        raise MtaError(self._error_line(piece.error))
                    piece.told = msgspec.convert(piece.mta, MtaDetails) if piece.mta else None
                    yield piece

    def add_item(self, model: str, task: str | None, question: str, answer: str) -> str:
        """Append an item to the history of a model's user; returns its key. Raises UsageError if writing is off."""
        body = {"input": question, "output": answer}
        user, slash, own_task = model.rpartition("/")
        try:
            return self._post_item(model, task, body)
        except NotFound:  # like the server: the name may be a user's; if not, it is USER/TASK
            if not slash:
                raise
            return self._post_item(user, own_task, body)

    def _post_item(self, user: str, task: str | None, body: dict[str, str]) -> str:
        body |= {"task": task} if task else {}
        path = f"/users/{quote(user, safe='/')}/items"
        with self._translate_errors(), self._client.stream("POST", path, json=body) as answered:
            self._require_success(answered, writes=True)
            return msgspec.json.decode(_read_body(answered), type=SavedItem).key

    def _get(self, path: str, kind: type[T]) -> T:
        with self._translate_errors(), self._client.stream("GET", path) as answered:
            self._require_success(answered)
            return msgspec.json.decode(_read_body(answered), type=kind)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Turn connection errors into ServerUnreachable, and replies in an unknown form into BadInput."""
        try:
            yield
        except httpx.HTTPError as error:
            raise ServerUnreachable(
                f"{self.url} does not answer: {error}", hint=("is ", Command("serve"), " running?")
            ) from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            words = (f"{self.url} does not answer like ", Command("serve"), f": {error}")
            raise BadInput(words, hint=ADDRESS_HINT) from error

    def _require_success(self, answered: httpx.Response, *, writes: bool = False) -> None:
        if answered.is_success:
            return
        try:
            error = msgspec.json.decode(_read_body(answered), type=ErrorReply).error
        except (msgspec.MsgspecError, ValueError, RecursionError):
            error = ServerError(f"status {answered.status_code}")
        message, code = self._error_line(error), error.code if isinstance(error, ServerError) else None
        if code in TOO_LONG or answered.status_code == 413:
            raise WindowFull(message)
        if writes and code == UNKNOWN_URL:
            raise UsageError(
                f"{self.url} does not accept history items from clients.",
                hint=(Command("serve", write=True), " accepts them"),
            )
        if answered.status_code == 404:
            hint = ADDRESS_HINT if code in (None, UNKNOWN_URL) else "/user NAME chooses another model"
            raise NotFound(message, hint=hint)
        if answered.status_code == 401:
            raise UsageError(message, hint="set MTA_SERVER_KEY to a key of this server")
        raise BadInput(message) if answered.status_code < 500 else MtaError(message)

    def _error_line(self, error: ServerError | str) -> str:
        """A server's error message in one line, with the address."""
        message = error if isinstance(error, str) else error.message
        return f"{self.url}: {' '.join(message.split())[:MAX_MESSAGE_CHARS] or 'an error without a message'}"


def _read_body(answered: httpx.Response) -> bytes:
    """The body of a reply. Raises ValueError above `MAX_REPLY_BYTES`."""
    content = bytearray()
    for piece in answered.iter_raw():
        content += piece
        if len(content) > MAX_REPLY_BYTES:
            raise ValueError(f"a reply of more than {MAX_REPLY_BYTES:,} bytes")
    return bytes(content)


def _read_lines(answered: httpx.Response) -> Iterator[bytes]:
    """The lines of a stream. Raises ValueError above `MAX_LINE_BYTES` or `MAX_STREAM_BYTES`."""
    rest, total = b"", 0
    for piece in answered.iter_raw():
        *lines, rest = (rest + piece).split(b"\n")
        total += len(piece)
        if max(map(len, (*lines, rest))) > MAX_LINE_BYTES or total > MAX_STREAM_BYTES:
            raise ValueError(f"a line above {MAX_LINE_BYTES:,} bytes or a stream above {MAX_STREAM_BYTES:,} bytes")
        yield from lines
    yield rest
