"""A conversation with a user's model on a server that speaks OpenAI's interface, as `mta serve` does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from mta_cli.errors import BadInput, Command, Flag, UsageError
from mta_cli.events import Event, JobResult, Note
from mta_cli.pipeline.chat.answer import truncation_notes
from mta_cli.pipeline.chat.conversation import UNFIT_ANSWERS
from mta_cli.pipeline.chat.fit_prompt import FittedPrompt, Message, check_message
from mta_cli.pipeline.chat.server_client import RemoteAnswer, ServerClient, StreamPiece, WindowFull
from mta_cli.pipeline.user_weights import FREE_TASK

BASE_MODEL = "base"


class RemoteConversation:
    """A conversation with one model of a server at a time. It is not stored on this machine."""

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
        """`sampling` are request parameters such as `temperature` and `stop`; the server has defaults for the rest."""
        self._client = ServerClient(url, key=key)
        self._model, self._task, self._mode = model or BASE_MODEL, task, ""
        self._messages: list[Message] = []
        self._sampling, self._system = dict(sampling or {}), system
        self._last_ended = ""  # a key of UNFIT_ANSWERS if the last answer cannot become a history item
        self._model_asks_task = self._asks_truncation = False

    @property
    def prompt_label(self) -> str:
        """The model and mode that answer, for the input prompt of a terminal."""
        return f"{self._model} ({self._mode or 'server'})"

    def user_names(self) -> list[str]:
        """The names of the models that the server lists."""
        return self._client.model_names()

    def opening_notes(self) -> Iterator[Event]:
        """A note on the model. Raises NotFound if the server has no model of this name."""
        self._mode = self._load_model_details(self._model)
        yield Note(f"{self._model} · {self._mode} · {self._client.url}")

    def answer_message(self, text: str) -> Iterator[Event]:
        """Answer one message. An interruption keeps the text generated before it."""
        check_message(text)
        before = [] if self._asks_task else self._messages
        messages = [*before, {"role": "user", "content": text}]
        given, answer, began = len(messages), RemoteAnswer(), time.perf_counter()
        self._last_ended = "interrupted"
        try:
            yield from answer.read(self._stream_what_fits(messages))
        finally:
            if answer.text:
                del messages[: answer.told.dropped_messages]
                self._messages = [*messages, {"role": "assistant", "content": answer.text}]
        self._last_ended = "repetition" if answer.ended == "repetition" else "" if answer.text.strip() else "empty"
        seconds = time.perf_counter() - began
        self._mode = answer.told.mode if answer.source else self._mode
        yield from truncation_notes(FittedPrompt([], dropped_messages=given - len(messages)))
        yield Note(f"{self._model} · {self._mode} · {seconds:.1f} s")
        if answer.ended == "length":
            yield Note("The answer was cut: it reached --max-tokens or the end of the model's window.", warning=True)
        if answer.ended == "repetition":
            yield Note("The answer began to repeat itself and was ended there.")
        result = {"user": self._model, "text": answer.text, "seconds": round(seconds, 3), "ended": answer.ended}
        yield JobResult(result | {"source": answer.source})

    def switch_user(self, name: str) -> Iterator[Event]:
        """Change to another model and start a new conversation."""
        self._mode = self._load_model_details(name)
        self._model = name
        yield from self.reset()

    def switch_task(self, name: str = "") -> Iterator[Event]:
        """Ask each following message as a question of the task `name`; without a name, use the model's default."""
        self._task = name or None
        yield Note(f"Each message is a separate question of task {name}." if name else "The conversation continues.")

    def reset(self) -> Iterator[Event]:
        """Start a new conversation with the same model."""
        self._messages, self._last_ended = [], ""
        yield Note(f"A new conversation with {self._model} begins.")

    def accept_exchange(self) -> Iterator[Event]:
        """Keep the last exchange as a history item on the server. Raises UsageError if the server forbids this.

        Raises BadInput for an answer that was stopped, is empty or repeats itself.
        """
        if not self._messages and not self._last_ended:
            raise BadInput("There is no answer yet to keep.", hint="ask something first")
        if self._last_ended:
            raise BadInput(
                f"{UNFIT_ANSWERS[self._last_ended]}, so it cannot become a history item.",
                hint="/good keeps complete answers only.",
            )
        question, answer = self._messages[-2]["content"], self._messages[-1]["content"]
        yield Note(f"Kept as history item {self._client.add_item(self._model, self._task, question, answer)}.")

    def set_system(self, text: str = "") -> Iterator[Event]:
        """Set the system message before the conversation; an empty text removes it."""
        self._system = text or None
        yield Note("The conversation has a system message now." if text else "The conversation has no system message.")

    def _raise_unsupported(self, text: str = "") -> NoReturn:
        raise UsageError(
            "This command does not work over a server.", hint=("use ", Command("chat"), " without ", Flag("server"))
        )

    # A server answers with the most personal model, and its clients store, remove and explain nothing.
    switch_mode = compare = explain_last = stored_chats = undo_accept = save = _raise_unsupported

    def _load_model_details(self, name: str) -> str:
        about = self._client.model(name)
        self._model_asks_task = about is not None and about.prompt == "task"
        self._asks_truncation = about is not None  # only of mta's server: another may refuse the unknown parameter
        return "server" if about is None else about.mode

    @property
    def _asks_task(self) -> bool:
        """Whether each message is a separate question of a task, so that only the last message is sent."""
        return self._task != FREE_TASK if self._task else self._model_asks_task

    def _stream_what_fits(self, messages: list[Message]) -> Iterator[StreamPiece]:
        """Stream the answer's pieces. Removes the oldest exchanges from `messages` until the rest fits the window."""
        while True:
            try:
                yield from self._stream(messages)
                return
            except WindowFull:
                if len(messages) < 3:
                    raise
                del messages[:2]

    def _stream(self, messages: list[Message]) -> Iterator[StreamPiece]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        body = {**self._sampling, "model": self._model, "messages": [*system, *messages], "stream": True}
        body |= {"task": self._task} if self._task else {}
        body |= {"truncation": "auto"} if self._asks_truncation else {}
        return self._client.stream_chat(body)
