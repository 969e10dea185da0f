"""What the rooms in which a model speaks have in common: how it is asked, and one talk at a time. Knows no room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mta_cli.events import Note
from mta_cli.options import AnswerOptions, MachineOptions, MemoryOptions, PromptOptions

if TYPE_CHECKING:
    from mta_cli.events import Event
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.pipeline.requests import ChatOptions
    from mta_cli.settings import Settings
    from mta_cli.tui.workers.model_worker import ModelRequest, ModelWorker, WorkerContext

NO_TASK_LABEL = "as typed"


def request_from_settings(settings: Settings, task: str | None, mode: str | None = None) -> ChatOptions:
    """How a question is put, with what is configured. Raises UsageFault for a setting that cannot be."""
    from mta_cli.pipeline.requests import chat_options

    classes = (AnswerOptions, MemoryOptions, PromptOptions, MachineOptions)
    return chat_options(settings.build_option_set(classes, {}), task, mode)


def next_in_cycle(values: list[str | None], current: str | None) -> str | None:
    """The value after `current`, around the end; the first where `current` is none of them."""
    return values[(values.index(current) + 1) % len(values)] if current in values else values[0]


class ActiveRequest:
    """The talk under way in a room, if any. What is heard after it was dropped is not passed on."""

    def __init__(self, speaker: ModelWorker) -> None:
        self._model_worker = speaker
        self._request: ModelRequest | None = None

    @property
    def in_progress(self) -> bool:
        """Whether a talk is under way."""
        return self._request is not None

    @property
    def stop_requested(self) -> bool:
        """Whether the talk under way was told to stop."""
        return self._request is not None and self._request.stop_requested

    def start_request(
        self,
        work: Callable[[WorkerContext], Iterator[Event]],
        hear: Callable[[Event], None],
        ended: Callable[[BaseException | None, bool], None],
    ) -> None:
        """Start a talk; `ended` gets the error, if any, and whether the talk was stopped."""
        talk: ModelRequest

        def over(error: BaseException | None) -> None:
            if self._request is talk:
                self._request = None
                ended(error, talk.stop_requested)

        def heard(event: Event) -> None:
            if self._request is talk:
                hear(event)

        talk = self._request = self._model_worker.submit_request(work, heard, over)

    def stop_request(self) -> bool:
        """End the talk after the event at hand; whether there was one."""
        if self._request is None:
            return False
        self._request.request_stop()
        return True

    def discard_request(self) -> None:
        """End the talk, and hear nothing of it any more."""
        self.stop_request()
        self._request = None


class ChatSession:
    """One conversation as the speaker's thread holds it between turns. The window reads it when no talk is under way.

    `refold`: the person's weights may be others than those that spoke last.
    """

    def __init__(self) -> None:
        self.weights_changed = False
        self._chat_id: int | None = None
        self._conversation: Conversation | None = None

    @property
    def chat_id(self) -> int | None:
        """The number under which it is stored, if it is."""
        return self._conversation.chat_id if self._conversation is not None else self._chat_id

    @property
    def has_exchange(self) -> bool:
        """Whether there is an exchange that can be called good."""
        return self._conversation is not None and bool(self._conversation.exchanges)

    def continue_chat(self, chat_id: int) -> None:
        """The next message continues this stored conversation."""
        self._chat_id = chat_id

    def send_message(self, desk: WorkerContext, person: str, asking: ChatOptions, text: str) -> Iterator[Event]:
        """One message and its answer, in the speaker's thread. A voice that speaks so already keeps its memory."""
        from mta_cli.pipeline.chat.conversation import Conversation

        user, known = desk.reg.users.get(person), self._conversation
        if not desk.base_loaded:
            yield Note("The base is being loaded …")
        if known is None or self.weights_changed or known.model.options != asking or known.model.user != user:
            voice = desk.chat_model_for(user, asking)
            self.weights_changed = False
            if known is not None:
                known.model = voice
        if known is None:
            known = Conversation(voice, autosave=True)
            if self._chat_id is not None:
                yield from known.resume(self._chat_id)
            self._conversation = known
        yield from known.answer_message(text)

    def keep_last_exchange(self) -> Iterator[Event]:
        """Keep the last exchange as a history item, in the speaker's thread."""
        assert self._conversation is not None
        yield from self._conversation.accept_exchange()
