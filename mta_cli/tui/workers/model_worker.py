"""One loaded base in a thread of its own, for all answers of the window. Knows neither widgets nor questions."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.events import Event, TextChunk

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.answer import ChatModel
    from mta_cli.pipeline.requests import ChatOptions
    from store.records import User
    from store.registry import Registry

OnEvent = Callable[[Event], None]
OnEnd = Callable[[BaseException | None], None]


class WorkerContext:
    """What work finds in the speaker's thread: a registry, and a voice on the loaded base."""

    def __init__(self, reg: Registry, base: str) -> None:
        self.reg = reg
        self._base_name = base
        self._chat_model: ChatModel | None = None

    @property
    def base_loaded(self) -> bool:
        """Whether the base is in memory already."""
        return self._chat_model is not None

    def chat_model_for(self, user: User | None, asking: ChatOptions) -> ChatModel:
        """A voice that speaks for `user`; the base is loaded with the first, and again for another machine."""
        from mta_cli.pipeline.chat.answer import ChatModel
        from mta_cli.pipeline.models.lookup import resolve_model

        if self._chat_model is not None and self._chat_model.options.machine == asking.machine:
            self._chat_model.set_user_and_options(user, asking)
            return self._chat_model
        self._chat_model = None  # gone before the next one is loaded
        self._chat_model = ChatModel.load_for_user(self.reg, resolve_model(self._base_name, "base"), user, asking)
        return self._chat_model


class ModelRequest:
    """A piece of work for the speaker, from question to end."""

    def __init__(self, work: Callable[[WorkerContext], Iterator[Event]], hear: OnEvent, ended: OnEnd) -> None:
        self.generate_events, self.on_event, self.on_end = work, hear, ended
        self._stop = threading.Event()

    @property
    def stop_requested(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def request_stop(self) -> None:
        """End it after the event at hand."""
        self._stop.set()


class _RequestEnded:
    """A talk is over, because of `error` where there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class ModelWorker:
    """Does talks one after another. Everything but `_run` belongs to the window's thread."""

    def __init__(self, root: Path, timeout: float, base: str) -> None:
        self._root, self._timeout, self._base = root, timeout, base
        self._requests: queue.SimpleQueue[ModelRequest | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[tuple[ModelRequest, Event | _RequestEnded]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open_requests: list[ModelRequest] = []

    @property
    def has_pending_requests(self) -> bool:
        """Whether a talk is under way or waits."""
        return bool(self._open_requests)

    def submit_request(
        self, work: Callable[[WorkerContext], Iterator[Event]], hear: OnEvent, ended: OnEnd
    ) -> ModelRequest:
        """Do `work` when its turn comes. `hear` gets its events and `ended` its end, both in the window's thread."""
        talk = ModelRequest(work, hear, ended)
        self._open_requests.append(talk)
        if self._thread is None:
            self._thread = threading.Thread(target=self._worker_loop, name="speaker", daemon=True)
            self._thread.start()
        self._requests.put(talk)
        return talk

    def dispatch_events(self) -> None:
        """Hand on what was said since the last time, tokens of one column in a row as one."""
        said: list[tuple[ModelRequest, Event | _RequestEnded]] = []
        with suppress(queue.Empty):
            while True:
                said.append(self._events.get_nowait())
        for talk, event in _merge_token_runs(said):
            if isinstance(event, _RequestEnded):
                self._open_requests.remove(talk)
                talk.on_end(event.error)
            else:
                talk.on_event(event)

    def close(self, patience: float = 5.0) -> None:
        """Stop all talks; wait so many seconds for the one under way."""
        for talk in self._open_requests:
            talk.request_stop()
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join(patience)

    def _worker_loop(self) -> None:
        from store.registry import Registry

        desk: WorkerContext | None = None
        while (talk := self._requests.get()) is not None:
            try:
                if desk is None:
                    desk = WorkerContext(Registry.open(self._root, create=True, timeout=self._timeout), self._base)
                self._run_request(talk, desk)
                self._events.put((talk, _RequestEnded(None)))
            except BaseException as error:
                self._events.put((talk, _RequestEnded(error)))
        if desk is not None:
            desk.reg.close()

    def _run_request(self, talk: ModelRequest, desk: WorkerContext) -> None:
        if talk.stop_requested:
            return
        events = talk.generate_events(desk)
        for event in events:
            self._events.put((talk, event))
            if talk.stop_requested:
                if (close := getattr(events, "close", None)) is not None:
                    close()
                return
            time.sleep(0)  # the window's thread comes first


def _merge_token_runs(
    said: list[tuple[ModelRequest, Event | _RequestEnded]],
) -> Iterator[tuple[ModelRequest, Event | _RequestEnded]]:
    """The same with runs of tokens of one talk and column made one."""
    held: tuple[ModelRequest, TextChunk] | None = None
    for talk, event in said:
        if isinstance(event, TextChunk):
            if held is not None and held[0] is talk and held[1].column == event.column:
                held = (talk, TextChunk(held[1].text + event.text, event.column))
                continue
            if held is not None:
                yield held
            held = (talk, event)
            continue
        if held is not None:
            yield held
            held = None
        yield talk, event
    if held is not None:
        yield held
