"""A message of a conversation of several people, as the readers of messengers' exports yield it."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

from mta_cli.pipeline.data.formats.parse_results import SourceLocation

SERVICE, NO_TEXT, OF_BOTS = "service messages", "messages without text", "messages of bots"
INVISIBLE_MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
"""Marks of writing direction and byte order marks, for a class of a regular expression."""

_MARKS = re.compile(f"[{INVISIBLE_MARKS}]")


class Answered(NamedTuple):
    """The earlier message to which a message is marked as a reply; `text` is "" if it has no text or is unknown."""

    sender: str
    text: str


class Message(NamedTuple):
    """A message. `sender` identifies its author; `names` are the author's names, the best known first, none for a bot.

    `text` is "" if its content is left out. `threads` are the threads that it belongs to; "" is the main
    conversation. In the thread that it opens, a message is only a question, never an answer.
    """

    conversation: str
    place: SourceLocation
    sender: str
    names: tuple[str, ...]
    text: str
    time: str | None
    answered: Answered | None = None
    threads: tuple[str, ...] = ("",)


def without_marks(text: str) -> str:
    """The text without invisible marks."""
    return _MARKS.sub("", text)


@lru_cache(maxsize=4096)
def fold_name(name: str) -> str:
    """A sender's name without invisible marks and differences in case, white space and Unicode form."""
    return " ".join(unicodedata.normalize("NFC", without_marks(name)).split()).casefold()
