"""Parts that Chat and Compare share: options of a question, one running request, and one conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput
from mta_cli.events import JobResult, JobStarted
from mta_cli.options import AnswerOptions, MachineOptions, MemoryOptions, PromptOptions

if TYPE_CHECKING:
    from mta_cli.configuration.settings import Settings
    from mta_cli.events import Event
    from mta_cli.pipeline.chat.conversation import Conversation
    from mta_cli.pipeline.requests import ChatOptions
    from mta_cli.tui.workers.model_worker import ModelRequest, ModelWorker, WorkerContext

LOADING, ANSWERING = "loading the base", "answering"  # stages of a request, the titles of `JobStarted`


def question_options_from_settings(settings: Settings, task: str | None, mode: str | None = None) -> ChatOptions:
    """The options of a question, from the settings. Raises UsageError for an invalid setting."""
    from mta_cli.pipeline.requests import chat_options

    classes = (AnswerOptions, MemoryOptions, PromptOptions, MachineOptions)
    return chat_options(settings.build_option_set(classes, {}), task, mode)


class ActiveRequest:
    """The request that a screen is running, if any. Events of a discarded request are dropped."""

    def __init__(self, model_worker: ModelWorker) -> None:
        self._model_worker = model_worker
        self._request: ModelRequest | None = None

    @property
    def in_progress(self) -> bool:
        """Whether a request is being answered."""
        return self._request is not None

    def start_request(
        self,
        generate_events: Callable[[WorkerContext], Iterator[Event]],
        on_event: Callable[[Event], None],
        on_end: Callable[[BaseException | None, bool], None],
    ) -> None:
        """Start a request. `on_end` is called with its error, if any, and whether it was stopped."""
        request: ModelRequest

        def end_current(error: BaseException | None) -> None:
            if self._request is request:
                self._request = None
                on_end(error, request.stop.is_set())

        def pass_current(event: Event) -> None:
            if self._request is request:
                on_event(event)

        request = self._request = self._model_worker.submit_request(generate_events, pass_current, end_current)

    def stop_request(self) -> bool:
        """End the request after the current event. Returns whether there was one."""
        if self._request is None:
            return False
        self._request.stop.set()
        return True

    def discard_request(self) -> None:
        """Stop the request and drop its further events."""
        self.stop_request()
        self._request = None


class ChatSession:
    """One conversation, which the model's thread changes. The window reads it while no request runs."""

    def __init__(self) -> None:
        self._chat_id: int | None = None
        self._conversation: Conversation | None = None
        self._answered_with: tuple[str, ChatOptions] | None = None  # the user and the options of the last message

    @property
    def chat_id(self) -> int | None:
        """The number of the stored conversation; None before it is stored."""
        return self._conversation.chat_id if self._conversation is not None else self._chat_id

    @property
    def has_exchange(self) -> bool:
        """Whether there is an exchange that can be kept."""
        return self._conversation is not None and bool(self._conversation.exchanges)

    def continue_chat(self, chat_id: int) -> None:
        """Let the next message continue this stored conversation."""
        self._chat_id = chat_id

    def send_message(self, context: WorkerContext, name: str, options: ChatOptions, text: str) -> Iterator[Event]:
        """Yields the events of answering one message, in the model's thread.

        The model is prepared again if its user, its options or the base have changed. Otherwise it keeps its KV cache.
        """
        from mta_cli.pipeline.chat.conversation import Conversation

        user, conversation = context.reg.users.get(name), self._conversation
        yield JobStarted(ANSWERING if context.base_loaded else LOADING)
        model = conversation.model if conversation is not None else None
        if model is None or (model.options, model.user) != (options, user) or not context.is_current(model):
            model = context.chat_model_for(user, options)
        yield JobStarted(ANSWERING)
        if conversation is None:
            conversation = Conversation(model, autosave=True)
            if self._chat_id is not None:
                yield from conversation.resume(self._chat_id)
            self._conversation = conversation
        conversation.model, self._answered_with = model, (name, options)
        yield from conversation.answer_message(text)

    def explain_last(self, context: WorkerContext) -> Iterator[Event]:
        """Yields the reasons of the last answer, in the model's thread. Restores this conversation's model first."""
        if self._conversation is None or self._answered_with is None:
            raise BadInput("This conversation has no answer to explain yet.", hint="ask something first")
        self._restore_own_model(context, self._conversation, self._answered_with)
        yield JobResult(self._conversation.explain_last())

    def keep_last_exchange(self, context: WorkerContext) -> Iterator[Event]:
        """Keep the last exchange as a history item of its user, in the model's thread."""
        assert self._conversation is not None and self._answered_with is not None
        self._restore_own_model(context, self._conversation, self._answered_with)
        yield from self._conversation.accept_exchange()

    def _restore_own_model(
        self, context: WorkerContext, conversation: Conversation, answered_with: tuple[str, ChatOptions]
    ) -> None:
        """Set the model to this conversation's user and options again, because Compare may have changed them."""
        name, options = answered_with
        user, model = context.reg.users.get(name), conversation.model
        if (model.options, model.user) != (options, user):
            conversation.model = context.chat_model_for(user, options)
