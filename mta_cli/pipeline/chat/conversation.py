"""A conversation with a user's model: what was said, what still fits the window, and what of it is stored.

Knows neither slash commands nor terminals; every turn is a generator of events.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, NotFound, StoreBusy
from mta_cli.events import Done, Event, Note, Saved
from mta_cli.pipeline.chat.answer import (
    FREE,
    Message,
    Spoken,
    Voice,
    as_result,
    hints,
    left_out,
    source_line,
    verdict,
)
from mta_cli.pipeline.chat.compare import compare_with
from mta_cli.printable import clean
from store.erase import SOMEBODY

if TYPE_CHECKING:
    from mta_cli.engine.text.prompts import Example
    from store.records import Chat, User
    from store.registry import Registry

TITLE_LENGTH = 60
LISTED_CHATS = 20


@dataclass
class Exchange:
    """A question, its answer and where the answer came from."""

    question: str
    answer: str
    source: dict[str, Any]
    good: bool = False
    stored: bool = False


class Conversation:
    """Turns with one user at a time. `keep` stores each exchange as soon as it is complete."""

    def __init__(self, voice: Voice, *, keep: bool) -> None:
        self.voice, self.keep = voice, keep
        self._begin()

    def _begin(self) -> None:
        self.exchanges: list[Exchange] = []
        self.first = 0  # exchanges before this one no longer fit the window
        self.chat: Chat | None = None
        self._history: list[Example] | None = None

    @property
    def chat_id(self) -> int | None:
        """The number of the stored conversation, once there is one."""
        return None if self.chat is None else self.chat.id

    def opening(self) -> Iterator[Event]:
        """Who is spoken with, by which weights, and what is stored."""
        voice = self.voice
        name = voice.user.name if voice.user else "nobody in particular"
        yield Note(f"{name} · {voice.base.name} · {source_line(voice.source, voice.task.name)}")
        yield from hints(voice)
        if voice.wraps:
            yield Note(f"Each message is a {voice.task.name} question by itself.")
        if self.keep and voice.user is None:
            yield Note("A conversation with nobody in particular is not stored.")

    def say(self, text: str) -> Iterator[Event]:
        """Answer one message. What was said before an interruption is kept."""
        ids, dropped, items = self._prompt(text, self.exchanges)
        self.first += dropped
        yield from left_out(dropped, items)
        spoken = Spoken()
        trouble: list[Event] = []
        try:
            yield from self.voice.speak(ids, spoken, text)
        finally:
            if spoken.text:
                trouble = self._remember(text, spoken)
        yield from trouble
        yield from verdict(self.voice, spoken)
        yield Done(as_result(self.voice, spoken))

    def compare(self, text: str = "") -> Iterator[Event]:
        """`text`, or the last question, to base, fused and adapted; the conversation stays as it was."""
        earlier = self.exchanges
        if not text:
            if not earlier:
                raise BadInput(
                    "There is no question yet to compare.", hint="/compare QUESTION, or ask something first."
                )
            text, earlier = earlier[-1].question, earlier[:-1]
        ids, dropped, items = self._prompt(text, earlier)
        yield from left_out(dropped, items)
        yield from compare_with(self.voice, text, ids)

    def switch_user(self, name: str) -> Iterator[Event]:
        """Speak with somebody else: new weights, a new conversation, the same loaded base."""
        user = self.voice.reg.users.get(name)
        self.voice.become(user, self.voice.asking.mode)
        self._begin()
        yield from self.opening()

    def switch_mode(self, mode: str) -> Iterator[Event]:
        """Go on with the same conversation under other weights."""
        self.voice.become(self.voice.user, mode)
        yield Note(source_line(self.voice.source, self.voice.task.name))

    def reset(self) -> Iterator[Event]:
        """Start over with the same user; what is stored stays."""
        self._begin()
        yield Note("A new conversation begins.")

    def good(self) -> Iterator[Event]:
        """Make the last exchange a history item of the user's task, `free` unless the chat was opened with one."""
        if not self.exchanges:
            raise BadInput("There is no answer yet to call good.")
        user, last = self._require_user("keep an item for"), self.exchanges[-1]
        if last.good:
            yield Note("This exchange is a history item already.")
            return
        saved = keep_item(self.voice.reg, user, self.voice.asking.task or FREE, last.question, last.answer)
        last.good = True
        yield saved

    def resume(self, chat_id: int) -> Iterator[Event]:
        """Go on with one of the user's stored chats. NotFound where they have none of that number."""
        user, chats = self._require_user("go on with"), self.voice.reg.chats
        chat = chats.get(chat_id)
        if chat.user_id != user.id:
            raise NotFound(f"{user.name} has no chat {chat_id}.", hint="/history lists them.")
        self._begin()
        self.chat, self.keep = chat, True
        question = ""
        for message in chats.messages(chat_id):
            if message.role == "user":
                question = message.content
            else:
                self.exchanges.append(Exchange(question, message.content, message.source, stored=True))
        yield Note(f"Going on with chat {chat_id} of {user.name}.")

    def save(self, target: str = "") -> Iterator[Event]:
        """Store the conversation, and from here on too; with `target`, also write it to that new text file."""
        if not self.exchanges:
            raise BadInput("There is nothing to save yet.")
        if target:
            yield Saved("transcript", str(_write_new(target, self._transcript())))
        if self.voice.user is None:
            if not target:
                self._require_user("store a conversation with")
            return
        self.keep = True
        yield from self._store()
        if self.chat is not None:
            yield Saved("chat", str(self.chat.id), f"{len(self.exchanges)} exchanges")

    def history(self, which: str = "") -> Iterator[Event]:
        """The user's stored chats, newest first; with a chat's number, its messages."""
        user, chats = self._require_user("look back with"), self.voice.reg.chats
        known = sorted(chats.of_user(user.id), key=lambda chat: chat.id, reverse=True)
        if which:
            wanted = [chat for chat in known if str(chat.id) == which]
            if not wanted:
                raise NotFound(f"{user.name} has no chat {which[:40]!r}.", hint="/history lists them.")
            messages = [
                {"role": m.role, "content": m.content, "source": m.source, "created": m.created}
                for m in chats.messages(wanted[0].id)
            ]
            yield Done({"chat": wanted[0].id, "user": user.name, "messages": messages})
            return
        listed = [
            {"chat": c.id, "created": c.created, "title": c.title, "messages": len(chats.messages(c.id))}
            for c in known[:LISTED_CHATS]
        ]
        yield Done({"user": user.name, "chats": listed, "more": max(0, len(known) - LISTED_CHATS)})

    def _prompt(self, text: str, exchanges: list[Exchange]) -> tuple[list[int], int, int]:
        """The fitted prompt for `text` after what of `exchanges` still fits."""
        messages: list[Message] = []
        for exchange in exchanges[self.first :] if not self.voice.wraps else ():
            messages += [
                {"role": "user", "content": exchange.question},
                {"role": "assistant", "content": exchange.answer},
            ]
        messages.append({"role": "user", "content": text})
        if self.voice.wraps:
            return self.voice.fitted(messages, self.voice.history(text))
        if self._history is None:  # the block stands before the first message: changing it later would void the cache
            self._history = self.voice.history(text)
        return self.voice.fitted(messages, self._history)

    def _remember(self, text: str, spoken: Spoken) -> list[Event]:
        self.exchanges.append(Exchange(text, spoken.text, self.voice.source.as_json()))
        try:
            return list(self._store()) if self.keep else []
        except NotFound as error:
            self.keep = False
            return [Note(f"Not stored, nor is what follows: {error.message}", warning=True)]

    def _store(self) -> Iterator[Event]:
        """Write what is not stored yet. A busy store is a warning: the next exchange tries again.

        Raises NotFound where the user or the stored conversation was removed meanwhile.
        """
        user, reg = self.voice.user, self.voice.reg
        if user is None:
            return
        waiting = [exchange for exchange in self.exchanges if not exchange.stored]
        try:
            with reg.transaction():
                reg.users.require(user)
                chat = self.chat or reg.chats.start(user.id, _title(self.exchanges[0].question))
                if reg.chats.get(chat.id) != chat:  # the number may be another conversation's by now
                    raise NotFound(f"There is no chat {chat.id}.", hint="/reset begins another.")
                for exchange in waiting:
                    reg.chats.add(chat.id, "user", exchange.question, {})
                    reg.chats.add(chat.id, "assistant", exchange.answer, _known(reg, exchange.source))
        except StoreBusy as error:
            yield Note(f"Not stored yet: {error.message}", warning=True)
            return
        self.chat = chat
        for exchange in waiting:
            exchange.stored = True

    def _transcript(self) -> str:
        name = self.voice.user.name if self.voice.user else "user"
        return "\n".join(
            f"{_turn(name, exchange.question)}{_turn(exchange.source['mode'], exchange.answer)}"
            for exchange in self.exchanges
        )

    def _require_user(self, purpose: str) -> Any:
        if self.voice.user is None:
            raise BadInput(f"There is nobody to {purpose}.", hint="/user NAME chooses somebody.")
        return self.voice.user


def keep_item(reg: Registry, user: User, task: str, question: str, answer: str) -> Saved:
    """Make an exchange a history item of a task. Raises BadInput where the answer is none of the task's labels."""
    from mta_cli.pipeline.data.tasks import find_task
    from store.records import NewItem

    labels = find_task(reg, task).labels
    if labels and answer.strip() not in labels:
        raise BadInput(f"{answer.strip()[:80]!r} is no label of {task}.", hint=f"Labels: {', '.join(labels)}")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")  # as imports have it
    content = "\0".join((now, question, answer))
    key = f"chat-{sha256(content.encode()).hexdigest()[:16]}"
    with reg.transaction():
        reg.users.require(user)
        reg.items.append(user.id, [NewItem(key, task, question, answer, now)])
    learn = f"learn from it with: mta user adapt {shlex.quote(user.name)} --task {task}"
    if reg.banks.latest(task) is None:
        learn = f"what learns from it needs a bank first: mta bank build --task {task}"
    return Saved("history item", key, f"task {task}; {learn}")


def _known(reg: Registry, source: dict[str, Any]) -> dict[str, Any]:
    """Where an answer came from, without the names of anchors who were forgotten since the voice was opened."""
    anchors = source.get("anchors", [])
    there = reg.users.known(anchors)
    return {**source, "anchors": [name if name in there else SOMEBODY for name in anchors]} if anchors else source


def _turn(who: str, text: str) -> str:
    """One turn of a transcript: text that was said cannot look like another's turn, or like a terminal's command."""
    return f"{clean(who)}: " + "\n    ".join(clean(text).splitlines()) + "\n"


def _title(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "…"


def _write_new(target: str, text: str) -> Path:
    """Write a file that must not exist yet; returns its path. Raises BadInput with the system's reason."""
    try:
        path = Path(target).expanduser()
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, the home of nobody
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{target!r:.200} cannot be written: {reason}", hint="Name a new file.") from error
    return path
