"""Reads a channel of Discord in DiscordChatExporter's JSON, message by message.

Discord's own data package is recognised and refused, because it has only the user's own messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.detect import FileSample, read_sample
from mta_cli.pipeline.data.formats.foreign_forms import convert
from mta_cli.pipeline.data.formats.json_array import JsonText
from mta_cli.pipeline.data.formats.messengers.message import NO_TEXT, OF_BOTS, SERVICE, Answered, Message
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.turns import Time, clean_text, known_time

NO_AUTHOR = "messages without an author"
RECENT_MESSAGES, RECENT_CHARS = 5_000, 4_000
"""The earlier messages kept for replies that refer to them, and the characters kept of each."""
_EXPORT = re.compile(rb'\{\s*"guild"\s*:\s*\{')
_PACKAGE_COLUMNS = ("ID", "Timestamp", "Contents")


class _Author(Struct, rename="camel"):
    id: str | None = None
    name: str | None = None
    nickname: str | None = None
    is_bot: bool | None = None


class _Reference(Struct, rename="camel"):
    message_id: str | None = None


class _Message(Struct):
    id: str | None = None
    type: str | int | None = None
    timestamp: Time = None
    content: str | None = None
    author: _Author | None = None
    reference: _Reference | None = None


def recognise(sample: FileSample) -> bool:
    """Whether the file begins as DiscordChatExporter's JSON does, or as the messages of Discord's data package."""
    return _EXPORT.match(sample.start) is not None or _is_of_package(sample)


def _is_of_package(sample: FileSample) -> bool:
    listed = sample.is_json_list and sample.record is not None and sample.record.keys() >= {*_PACKAGE_COLUMNS}
    return listed or sample.first_line.startswith(",".join(_PACKAGE_COLUMNS))


def read_messages(stream: BinaryIO, path: Path | ArchivedFile, findings: ParseFindings) -> Iterator[Message]:
    """The messages of the channel. Raises `BadInput` for Discord's data package."""
    if _is_of_package(read_sample(stream, path.name)):
        raise BadInput(
            f"{path.name} is from Discord's data package, which lacks the messages that you answered",
            hint="export whole channels as JSON with DiscordChatExporter, and import that file",
        )
    text = JsonText(stream, path.name)
    if text.peek() != "{":
        text.fail("Expecting an object")
    for key in text.names():
        if key == "messages" and text.peek() == "[":
            yield from _read_channel(text, path.name, findings)
        else:
            text.read_value()
    text.require_end()


def _read_channel(text: JsonText, file: str, findings: ParseFindings) -> Iterator[Message]:
    recent: dict[str, Answered] = {}
    for number, _ in enumerate(text.members(), 1):
        place = SourceLocation(file, number)
        message = convert(text.read_value(), _Message, place, findings)
        if message is None:
            continue
        author = message.author or _Author()
        if message.type not in ("Default", "Reply"):
            findings.skip_counts[SERVICE] += 1
        elif not author.id:
            findings.skip_counts[NO_AUTHOR] += 1
        else:
            words, names = clean_text(message.content), _names(author)
            if author.is_bot:
                findings.skip_counts[OF_BOTS] += 1
                words, names = "", ()
            elif not words:
                findings.skip_counts[NO_TEXT] += 1
            answered = None
            if message.type == "Reply":
                target = message.reference.message_id if message.reference is not None else None
                answered = recent.get(target or "", Answered("", ""))
            if message.id:
                recent[message.id] = Answered(author.id, words[:RECENT_CHARS])
            if len(recent) > RECENT_MESSAGES:
                del recent[next(iter(recent))]
            yield Message(file, place, author.id, names, words, known_time(message.timestamp), answered)


def _names(author: _Author) -> tuple[str, ...]:
    """The author's name, the nickname in this channel, and the id."""
    return tuple(filter(None, map(clean_text, (author.name, author.nickname, author.id))))
