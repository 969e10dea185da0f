"""Reads the personal chats of Telegram's export of one chat or of all, message by message."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from msgspec import UNSET, Struct

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.foreign_forms import convert
from mta_cli.pipeline.data.formats.json_array import JsonText
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import Time, Turn, clean_text, known_time, pair_turns

NOT_PERSONAL = "chats that are not with one person"
SERVICE, NO_TEXT, FORWARDED, NO_AUTHOR = (
    "service messages",
    "messages without text",
    "forwarded messages and messages of bots",
    "messages without an author",
)
_ONE_CHAT = re.compile(
    rb'\{\s*"name"\s*:.{0,2000}?"type"\s*:\s*"'
    rb'(personal_chat|bot_chat|saved_messages|private_(group|supergroup|channel)|public_(supergroup|channel))"',
    re.DOTALL,
)
_ALL_CHATS = re.compile(rb'\{\s*"about"\s*:\s*"[^"]{0,2000}Telegram')


class _Entity(Struct):
    text: str = ""


class _Message(Struct):
    type: str | None = None
    from_id: str | int | None = None
    text: str | list[str | _Entity] | None = None  # plain texts, and entities such as links
    date_unixtime: Time = None
    date: Time = None
    forwarded_from: Any = UNSET  # null for a deleted account
    via_bot: Any = UNSET


def recognise(sample: FileSample) -> bool:
    """Whether the file begins as an export of one chat, or of the whole account."""
    return bool(_ONE_CHAT.match(sample.start) or _ALL_CHATS.match(sample.start))


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Rows of the other person's turn and the user's next turn, from every personal chat."""
    text = JsonText(stream, file)
    if text.peek() != "{":
        text.fail("Expecting an object")
    places = (SourceLocation(file, number) for number in itertools.count(1))  # locations of messages in personal chats
    yield from _read_chat(text, places, findings, whole=True)
    text.require_end()


def _read_chat(
    text: JsonText, places: Iterator[SourceLocation], findings: ParseFindings, *, whole: bool = False
) -> Iterator[RawRow]:
    """The rows of the chat that begins here. With `whole`, it may also be a complete export that contains chats."""
    about: dict[str, Any] = {}
    for key in text.names():
        if key == "messages" and text.peek() == "[":
            if about.get("type") == "personal_chat":
                yield from pair_turns(_read_turns(text, str(about.get("id")), places, findings), findings)
            else:
                findings.skip_counts[NOT_PERSONAL] += 1
                for _ in text.members():
                    text.read_value()
        elif whole and key in ("chats", "left_chats") and text.peek() == "{":
            for inner in text.names():
                if inner == "list" and text.peek() == "[":
                    for _ in text.members():
                        if text.peek() == "{":
                            yield from _read_chat(text, places, findings)
                        else:
                            text.read_value()
                else:
                    text.read_value()
        else:
            about[key] = text.read_value()


def _read_turns(
    text: JsonText, other: str, places: Iterator[SourceLocation], findings: ParseFindings
) -> Iterator[Turn]:
    """The turns of a chat with the person whose id is `other`; all other messages are the user's."""
    for _ in text.members():
        place = next(places)
        message = convert(text.read_value(), _Message, place, findings)
        if message is None:
            continue
        if message.type != "message":
            findings.skip_counts[SERVICE] += 1
        elif message.from_id is None:
            findings.skip_counts[NO_AUTHOR] += 1
        else:
            words = _words(message.text)
            if message.forwarded_from is not UNSET or message.via_bot is not UNSET:
                findings.skip_counts[FORWARDED] += 1
                words = ""
            elif not words:
                findings.skip_counts[NO_TEXT] += 1
            time = known_time(message.date_unixtime) or known_time(message.date)
            mine = str(message.from_id).removeprefix("user") != other
            yield Turn(mine, words, time, place)


def _words(text: str | list[str | _Entity] | None) -> str:
    pieces = text if isinstance(text, list) else [text or ""]
    return clean_text("".join(piece if isinstance(piece, str) else piece.text for piece in pieces))
