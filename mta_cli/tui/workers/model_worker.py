"""Answers all requests of the window with one loaded base, in one thread. Works for any kind of request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.worker import get_current_worker

from mta_cli.errors import UsageError
from mta_cli.events import Event, ItemKept
from mta_cli.tui.workers.event_buffer import EventBuffer

if TYPE_CHECKING:
    from textual.app import App

    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.models.manifest import ModelEntry
    from mta_cli.pipeline.requests import ChatOptions
    from store.records import User
    from store.registry import Registry

OnEvent = Callable[[Event], None]
OnEnd = Callable[[BaseException | None], None]
UPDATE_SECONDS = 1 / 30  # between two batches of tokens


class WorkerContext:
    """What the model's thread keeps between requests: an open store, and a chat model on the loaded base."""

    def __init__(self, reg: Registry, base: str, *, chosen: bool = True) -> None:
        self.reg = reg
        self._base_name, self._base_chosen = base, chosen
        self._chat_model: ChatModel | None = None
        self._loaded: ModelEntry | None = None  # the base of the chat model

    @property
    def base_loaded(self) -> bool:
        """Whether the base is loaded."""
        return self._chat_model is not None

    def comparison_column_keys(self, user: User, options: ChatOptions, others: Sequence[User]) -> list[str]:
        """The columns that a comparison with these options will have, before the base is loaded."""
        from mta_cli.pipeline.chat.compare import comparison_column_keys

        return comparison_column_keys(self.reg, user, options.task, self._choose_base().fingerprint, others)

    def chat_model_for(self, user: User | None, options: ChatOptions) -> ChatModel:
        """The chat model of `user`. The base is loaded at the first call, and again when the machine options or the
        base of the store's banks change."""
        from mta_cli.pipeline.chat.answer import ChatModel

        model = self._chat_model
        if model is not None and model.options.machine == options.machine and self.is_current(model):
            model.set_user_and_options(user, options)
            return model
        entry = self._choose_base()
        self._chat_model = model = None  # free it before the next base is loaded
        self._chat_model, self._loaded = ChatModel.load_for_user(self.reg, entry, user, options), entry
        return self._chat_model

    def is_current(self, model: ChatModel) -> bool:
        """Whether this is the loaded model and its base is the one that should answer now."""
        if self._chat_model is not model or self._loaded is None:
            return False
        return self._choose_base().fingerprint == self._loaded.fingerprint

    def _choose_base(self) -> ModelEntry:
        """The base that the user chose, else the one that `choose_base` finds; if it finds several, the loaded base."""
        from mta_cli.pipeline.bases_in_use import choose_base
        from mta_cli.pipeline.models.installed import resolve_model

        try:
            name = self._base_name if self._base_chosen else choose_base(self.reg, self._base_name)
        except UsageError:
            if self._loaded is None:
                raise
            return self._loaded
        return resolve_model(name, "base")


@dataclass(eq=False)
class ModelRequest:
    """Work for the model's thread: a function that generates events, and the callbacks for them.

    Once `stop` is set, the request ends after the current event.
    """

    generate_events: Callable[[WorkerContext], Iterator[Event]]
    on_event: OnEvent
    on_end: OnEnd
    stop: threading.Event = field(default_factory=threading.Event)

    def handle_events(self, events: list[Event]) -> None:
        """Call `on_event` for each of several events, in the window's thread."""
        for event in events:
            self.on_event(event)


class ModelWorker:
    """Answers requests one after another, in one long-lived thread worker of the app.

    Unless a base is `chosen` explicitly, the base of the store's banks is used.
    """

    GROUP = "model"

    def __init__(self, app: App[Any], root: Path, timeout: float, base: str, *, chosen: bool = True) -> None:
        self._app, self._root, self._timeout, self._base, self._chosen = app, root, timeout, base, chosen
        self.on_kept: Callable[[ItemKept], None] = lambda kept: None
        """Called in the window's thread with each history item that was made from an answer."""
        self._queue: queue.SimpleQueue[ModelRequest | None] = queue.SimpleQueue()
        self._open_requests: list[ModelRequest] = []
        self._started = False

    @property
    def has_pending_requests(self) -> bool:
        """Whether a request is being answered or waits."""
        return bool(self._open_requests)

    def submit_request(
        self, generate_events: Callable[[WorkerContext], Iterator[Event]], on_event: OnEvent, on_end: OnEnd
    ) -> ModelRequest:
        """Queue a request. `on_event` gets its events and `on_end` its error or None, both in the window's thread."""

        def pass_on(event: Event) -> None:
            if isinstance(event, ItemKept):
                self.on_kept(event)
            on_event(event)

        request = ModelRequest(generate_events, pass_on, on_end)
        self._open_requests.append(request)
        self._queue.put(request)
        if not self._started:
            self._started = True
            self._app.run_worker(self._answer_requests, name="model", group=self.GROUP, thread=True)
        return request

    def close(self) -> None:
        """Stop all requests after the current event, then end the thread, without waiting."""
        for request in self._open_requests:
            request.stop.set()
        self._queue.put(None)

    def _answer_requests(self) -> None:
        """Answer requests until the window closes. The open store and the base stay in this thread."""
        from store.registry import Registry

        worker, context = get_current_worker(), None
        try:
            while (request := self._queue.get()) is not None:
                error: BaseException | None = None
                buffer = EventBuffer(self._app, request.handle_events, UPDATE_SECONDS)
                try:
                    if context is None:
                        reg = Registry.open(self._root, create=True, timeout=self._timeout)
                        context = WorkerContext(reg, self._base, chosen=self._chosen)
                    self._buffer_events(request, context, buffer)
                except BaseException as raised:
                    error = raised
                if not worker.is_cancelled:  # otherwise the window is closed
                    self._app.call_from_thread(self._end_request, request, error, buffer)
        finally:
            if context is not None:
                context.reg.close()

    def _buffer_events(self, request: ModelRequest, context: WorkerContext, buffer: EventBuffer) -> None:
        """Put the request's events into `buffer` until it ends or is stopped, or the window closes."""
        if request.stop.is_set():
            return
        worker = get_current_worker()
        with closing(request.generate_events(context)) as events:  # type: ignore[type-var]
            for event in events:
                buffer.put(event)
                if request.stop.is_set() or worker.is_cancelled:
                    return

    def _end_request(self, request: ModelRequest, error: BaseException | None, buffer: EventBuffer) -> None:
        buffer.flush()
        self._open_requests.remove(request)
        request.on_end(error)
