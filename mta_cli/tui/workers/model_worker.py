"""One loaded base in a thread of its own, for all answers of the window. Knows neither widgets nor questions."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.events import Event, Token

if TYPE_CHECKING:
    from mta_cli.pipeline.chat.answer import Asking, Voice
    from store.records import User
    from store.registry import Registry

Hear = Callable[[Event], None]
Ended = Callable[[BaseException | None], None]


class Desk:
    """What work finds in the speaker's thread: a registry, and a voice on the loaded base."""

    def __init__(self, reg: Registry, base: str) -> None:
        self.reg = reg
        self._name = base
        self._voice: Voice | None = None

    @property
    def loaded(self) -> bool:
        """Whether the base is in memory already."""
        return self._voice is not None

    def voice(self, user: User | None, asking: Asking) -> Voice:
        """A voice that speaks for `user`; the base is loaded with the first, and again for another machine."""
        from mta_cli.pipeline.chat.answer import Voice
        from mta_cli.pipeline.models.lookup import resolve

        if self._voice is not None and self._voice.asking.machine == asking.machine:
            self._voice.turn_to(user, asking)
            return self._voice
        self._voice = None  # gone before the next one is loaded
        self._voice = Voice.open(self.reg, resolve(self._name, "base"), user, asking)
        return self._voice


class Talk:
    """A piece of work for the speaker, from question to end."""

    def __init__(self, work: Callable[[Desk], Iterator[Event]], hear: Hear, ended: Ended) -> None:
        self.work, self.hear, self.ended = work, hear, ended
        self._stop = threading.Event()

    @property
    def stopped(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End it after the event at hand."""
        self._stop.set()


class _End:
    """A talk is over, because of `error` where there is one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Speaker:
    """Does talks one after another. Everything but `_run` belongs to the window's thread."""

    def __init__(self, root: Path, timeout: float, base: str) -> None:
        self._root, self._timeout, self._base = root, timeout, base
        self._asked: queue.SimpleQueue[Talk | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[tuple[Talk, Event | _End]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._open: list[Talk] = []

    @property
    def busy(self) -> bool:
        """Whether a talk is under way or waits."""
        return bool(self._open)

    def start(self, work: Callable[[Desk], Iterator[Event]], hear: Hear, ended: Ended) -> Talk:
        """Do `work` when its turn comes. `hear` gets its events and `ended` its end, both in the window's thread."""
        talk = Talk(work, hear, ended)
        self._open.append(talk)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="speaker", daemon=True)
            self._thread.start()
        self._asked.put(talk)
        return talk

    def drain(self) -> None:
        """Hand on what was said since the last time, tokens of one column in a row as one."""
        said: list[tuple[Talk, Event | _End]] = []
        with suppress(queue.Empty):
            while True:
                said.append(self._heard.get_nowait())
        for talk, event in _joined(said):
            if isinstance(event, _End):
                self._open.remove(talk)
                talk.ended(event.error)
            else:
                talk.hear(event)

    def close(self, patience: float = 5.0) -> None:
        """Stop all talks; wait so many seconds for the one under way."""
        for talk in self._open:
            talk.stop()
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join(patience)

    def _run(self) -> None:
        from store.registry import Registry

        desk: Desk | None = None
        while (talk := self._asked.get()) is not None:
            try:
                if desk is None:
                    desk = Desk(Registry.open(self._root, create=True, timeout=self._timeout), self._base)
                self._do(talk, desk)
                self._heard.put((talk, _End(None)))
            except BaseException as error:
                self._heard.put((talk, _End(error)))
        if desk is not None:
            desk.reg.close()

    def _do(self, talk: Talk, desk: Desk) -> None:
        if talk.stopped:
            return
        events = talk.work(desk)
        for event in events:
            self._heard.put((talk, event))
            if talk.stopped:
                if (close := getattr(events, "close", None)) is not None:
                    close()
                return
            time.sleep(0)  # the window's thread comes first


def _joined(said: list[tuple[Talk, Event | _End]]) -> Iterator[tuple[Talk, Event | _End]]:
    """The same with runs of tokens of one talk and column made one."""
    held: tuple[Talk, Token] | None = None
    for talk, event in said:
        if isinstance(event, Token):
            if held is not None and held[0] is talk and held[1].column == event.column:
                held = (talk, Token(held[1].text + event.text, event.column))
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
