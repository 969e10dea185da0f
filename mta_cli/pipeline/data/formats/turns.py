"""Turns a conversation into rows of the other side's message and the user's reply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct

from mta_cli.pipeline.data.formats.fields import MAX_TEXT_CHARS
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.timestamps import normalise_time

UNPROMPTED = "your messages that begin a conversation"
NO_QUESTION = "your replies to messages without text"


Time = str | int | float | None
"""A time as exports write it."""


class TextPart(Struct):
    """A part of a message, with text if its type is text."""

    type: str | None = None
    text: str | None = None


class Turn(NamedTuple):
    """A message of the user (`mine`) or of another sender; `text` is "" if its content is left out.

    `sender` distinguishes several other senders. `answers` is the text of the earlier message to which this one is
    marked as a reply ("" if that is missing or has no text); None without such a mark.
    """

    mine: bool
    text: str
    time: str | None
    place: SourceLocation
    sender: str = ""
    answers: str | None = None


class TurnPairs:
    """Pairs the turns of one conversation. `title` is the input if the user's turn comes first.

    Consecutive messages of a sender are one turn. A row is a turn of the user with text; its input is the message that
    it replies to, else the preceding turn. The user's turns without an input are left out and counted.
    """

    def __init__(self, findings: ParseFindings, title: str = "") -> None:
        self._findings, self._title = findings, title
        self._before, self._reason = title, UNPROMPTED
        self._first: Turn | None = None
        self._said: Turn | None = None  # the first with text
        self._texts, self._size = list[str](), 0

    def add(self, message: Turn) -> Iterator[RawRow]:
        """Add a message. Yields a row if it ends a turn of the user."""
        same = self._first is not None and (self._first.mine, self._first.sender) == (message.mine, message.sender)
        if not same or message.answers is not None:
            yield from self.end()
            self._begin_turn(message)
        if message.text and self._size <= MAX_TEXT_CHARS:  # a longer text is refused anyway
            self._said = self._said or message
            self._texts.append(message.text)
            self._size += len(message.text)

    def end(self) -> Iterator[RawRow]:
        """End the conversation. Yields a row if its last turn is the user's."""
        first, said, text = self._first, self._said, "\n".join(self._texts)
        self._begin_turn(None)
        if first is not None and not first.mine:
            self._before = text or self._title
        elif first is not None and said is not None:
            answered = self._before if first.answers is None else first.answers
            if answered:
                yield said.place, {"input": answered, "output": text, "time": said.time}
            else:
                self._findings.skip_counts[self._reason if first.answers is None else NO_QUESTION] += 1
            self._title, self._reason = "", NO_QUESTION

    def _begin_turn(self, first: Turn | None) -> None:
        self._first, self._said, self._texts, self._size = first, None, [], 0


def pair_turns(turns: Iterable[Turn], findings: ParseFindings, title: str = "") -> Iterator[RawRow]:
    """The rows of one conversation: one for each of the user's turns with text and an input (see `TurnPairs`)."""
    pairs = TurnPairs(findings, title)
    for turn in turns:
        yield from pairs.add(turn)
    yield from pairs.end()


def clean_text(text: str | None) -> str:
    """Text that can be stored: stripped, without NUL and lone surrogates; "" for None."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode().strip()


def join_parts(parts: Iterable[TextPart]) -> str:
    """The text parts of a message, joined by line breaks."""
    return "\n".join(filter(None, (clean_text(part.text) for part in parts if part.type == "text")))


def known_time(value: Time) -> str | None:
    """A time in its stored form; None if it is missing or invalid."""
    try:
        return normalise_time(str(value))
    except ValueError:
        return None
