"""A conversation with a user's model on a server that speaks OpenAI's interface, as `mta serve` does."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn
from urllib.parse import quote

import httpx

from mta_cli.errors import BadInput, Command, Flag, MtaError, NotFound, UsageError
from mta_cli.events import Event, JobResult, Note, TextChunk
from mta_cli.pipeline.chat.answer import truncation_notes
from mta_cli.pipeline.chat.conversation import UNFIT_ANSWERS
from mta_cli.pipeline.chat.fit_prompt import FittedPrompt, Message, check_message
from mta_cli.pipeline.user_weights import FREE_TASK

CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0
BASE_MODEL = "base"
UNKNOWN_URL = "unknown_url"  # the code of an address that the server does not have
TOO_LONG = ("context_length_exceeded", "request_too_large", "array_above_max_length")  # codes
ADDRESS_HINT = ("the address of a server ends in /v1: ", Flag("server", "http://127.0.0.1:8000/v1"))


class WindowFull(BadInput):
    """The messages do not fit into the model's window, or are more than the server takes."""


class RemoteConversation:
    """Turns with one model of a server at a time. What is said stays in this process and on the server's machine."""

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        key: str | None = None,
        task: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        system: str | None = None,
    ) -> None:
        """`sampling` are parameters of the interface, as `temperature` and `stop`; the server decides the others."""
        if not url.startswith(("http://", "https://")):
            raise UsageError(
                (Flag("server", url[:100]), " is not an address."), hint=Flag("server", "http://127.0.0.1:8000/v1")
            )
        headers = {"authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout)
        self._model, self._task, self._mode = model or BASE_MODEL, task, ""
        self._messages: list[Message] = []
        self._sampling, self._system = dict(sampling or {}), system
        self._last_ended = ""  # as a key of UNFIT_ANSWERS, where the last answer is not an example
        self._model_asks_task = self._server_truncates = False

    @property
    def prompt_label(self) -> str:
        """Who answers, for the prompt of a terminal."""
        return f"{self._model} ({self._mode or 'server'})"

    def user_names(self) -> list[str]:
        """The models that the server lists."""
        return [str(one["id"]) for one in self._get("/models")["data"]]

    def opening_notes(self) -> Iterator[Event]:
        """A note on the model. Raises NotFound where the server has none of this name."""
        self._mode = self._describe(self._model)
        yield Note(f"{self._model} · {self._mode} · {self._client.base_url}")

    def answer_message(self, text: str) -> Iterator[Event]:
        """Answer one message. An interruption keeps the text that came before it."""
        check_message(text)
        before = [] if self._asks_task else self._messages
        messages = [*before, {"role": "user", "content": text}]
        given, said, ended, source, began = len(messages), "", "", dict[str, Any](), time.perf_counter()
        self._last_ended = "interrupted"
        try:
            for piece in self._stream_what_fits(messages):
                source = piece.get("mta") or source
                for choice in piece.get("choices", ()):
                    repeats = choice.get("stop_reason") == "repetition"
                    ended = "repetition" if repeats else choice.get("finish_reason") or ended
                    if chunk := (choice.get("delta") or {}).get("content"):
                        said += chunk
                        yield TextChunk(chunk)
        finally:
            if said:
                del messages[: source.get("dropped_messages", 0)]
                self._messages = [*messages, {"role": "assistant", "content": said}]
        self._last_ended = "repetition" if ended == "repetition" else "" if said.strip() else "empty"
        seconds = time.perf_counter() - began
        self._mode = str(source.get("mode", self._mode))
        yield from truncation_notes(FittedPrompt([], dropped_messages=given - len(messages)))
        yield Note(f"{self._model} · {self._mode} · {seconds:.1f} s")
        if ended == "length":
            yield Note("The answer was cut (--max-tokens, or the end of the window).", warning=True)
        if ended == "repetition":
            yield Note("The answer began to repeat itself and was ended there.")
        result = {"user": self._model, "text": said, "seconds": round(seconds, 3), "ended": ended, "source": source}
        yield JobResult(result)

    def switch_user(self, name: str) -> Iterator[Event]:
        """Change to another model, in a new conversation."""
        self._mode = self._describe(name)
        self._model = name
        yield from self.reset()

    def switch_task(self, name: str = "") -> Iterator[Event]:
        """Make each message from here on a question of this task; without a name, as the model's name says."""
        self._task = name or None
        yield Note(f"Each message is a {name} question by itself." if name else "A conversation goes on.")

    def reset(self) -> Iterator[Event]:
        """Start a new conversation with the same model."""
        self._messages, self._last_ended = [], ""
        yield Note(f"A new conversation with {self._model} begins.")

    def switch_mode(self, mode: str) -> Iterator[Event]:
        """Not here: a server answers with the most personal model."""
        self._refuse()

    def compare(self, text: str = "") -> Iterator[Event]:
        """Not here."""
        self._refuse()

    def explain_last(self) -> dict[str, Any]:
        """Not here."""
        self._refuse()

    def stored_chats(self, which: str = "") -> Iterator[Event]:
        """Not here: nothing is stored."""
        self._refuse()

    def accept_exchange(self) -> Iterator[Event]:
        """Keep the last exchange as a history item, where the server lets clients write."""
        if not self._messages and not self._last_ended:
            raise BadInput("There is no answer yet to keep.")
        if self._last_ended:
            raise BadInput(
                f"{UNFIT_ANSWERS[self._last_ended]}, so it is not an example to learn from.",
                hint="/good keeps a whole answer.",
            )
        question, answer = self._messages[-2]["content"], self._messages[-1]["content"]
        body = {"input": question, "output": answer}
        user, slash, task = self._model.rpartition("/")
        with self._explained():
            told = self._post_item(self._model, self._task, body)
            if told.status_code == 404 and slash:  # as the server reads a model's name: a user first, then USER/TASK
                told = self._post_item(user, task, body)
        if told.status_code == 404 and UNKNOWN_URL in told.text:
            raise UsageError("The server does not let its clients write.", hint=(Command("serve", write=True), " does"))
        self._require_success(told)
        yield Note(f"history item {told.json()['key']}")

    def _post_item(self, user: str, task: str | None, body: dict[str, str]) -> httpx.Response:
        return self._client.post(f"/users/{_quoted(user)}/items", json=body | ({"task": task} if task else {}))

    def undo_accept(self) -> Iterator[Event]:
        """Not here: a server's clients remove nothing."""
        self._refuse()

    def set_system(self, text: str = "") -> Iterator[Event]:
        """Put a system message in front of the conversation; an empty text takes it away."""
        self._system = text or None
        yield Note("The conversation has a system message now." if text else "The conversation has no system message.")

    def save(self, target: str = "") -> Iterator[Event]:
        """Not here: nothing is stored."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(
            "This is not for a conversation over a server.", hint=(Command("chat"), " without ", Flag("server"))
        )

    def _describe(self, name: str) -> str:
        about = self._get(f"/models/{_quoted(name)}").get("mta") or {}
        self._model_asks_task = about.get("prompt") == "task"
        self._server_truncates = bool(about)  # other servers may refuse a parameter that they do not know
        return str(about.get("mode", "server"))

    @property
    def _asks_task(self) -> bool:
        """Whether each message is a task's question by itself: the server then reads the last one alone."""
        return self._task != FREE_TASK if self._task else self._model_asks_task

    def _get(self, path: str) -> dict[str, Any]:
        with self._explained():
            answered = self._client.get(path)
        self._require_success(answered)
        found: dict[str, Any] = answered.json()
        return found

    def _stream_what_fits(self, messages: list[Message]) -> Iterator[dict[str, Any]]:
        """As `_stream`. Drops the oldest exchanges from `messages` until the others fit."""
        while True:
            try:
                yield from self._stream(messages)
                return
            except WindowFull:
                if len(messages) < 3:
                    raise
                del messages[:2]

    def _stream(self, messages: list[Message]) -> Iterator[dict[str, Any]]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        body = {**self._sampling, "model": self._model, "messages": [*system, *messages], "stream": True}
        body |= {"task": self._task} if self._task else {}
        body |= {"truncation": "auto"} if self._server_truncates else {}
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

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Inside, a server that cannot be reached is an MtaError with its address."""
        try:
            yield
        except httpx.HTTPError as error:
            message = f"{self._client.base_url} does not answer: {error}"
            raise MtaError(message, hint=("is ", Command("serve"), " running?")) from error

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
            raise UsageError(message, hint="MTA_SERVER_KEY holds the key")
        raise BadInput(message) if answered.status_code < 500 else MtaError(message)


def _quoted(name: str) -> str:
    """A model's or user's name as a part of an address."""
    return quote(name, safe="/")
