"""Turns a conversation into rows: the other side's message and the user's reply. Knows no format."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec import Struct

from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.timestamps import normalise_time

UNPROMPTED = "your first words of a conversation"
NO_QUESTION = "your replies to messages without text"


Time = str | int | float | None
"""A time in an export."""


class TextPart(Struct):
    """A part of a message, with text if its type is text."""

    type: str | None = None
    text: str | None = None


class Turn(NamedTuple):
    """A message of the user (`mine`) or of the other side; `text` is "" if its content is left out."""

    mine: bool
    text: str
    time: str | None
    place: SourceLocation


def pair_turns(turns: Iterable[Turn], findings: ParseFindings, title: str = "") -> Iterator[RawRow]:
    """A row for each turn of the user with text. The input is the preceding turn; for the first one, the title.

    Consecutive messages of a side are one turn. The user's turns without an input are left out and counted.
    """
    before, reason = title, UNPROMPTED
    for mine, messages in itertools.groupby(turns, key=lambda turn: turn.mine):
        said = [message for message in messages if message.text]
        text = "\n".join(message.text for message in said)
        if not mine:
            before = text or title
        elif said:
            if before:
                yield said[0].place, {"input": before, "output": text, "time": said[0].time}
            else:
                findings.skip_counts[reason] += 1
            title, reason = "", NO_QUESTION


def clean_text(text: str | None) -> str:
    """Text that can be stored: stripped, without NUL and lone surrogates; "" for None."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode().strip()


def join_parts(parts: Iterable[TextPart]) -> str:
    """The texts among the parts of a message, a line each."""
    return "\n".join(filter(None, (clean_text(part.text) for part in parts if part.type == "text")))


def known_time(value: Time) -> str | None:
    """A time in its stored form; None if it is missing or invalid."""
    try:
        return normalise_time(str(value))
    except ValueError:
        return None
