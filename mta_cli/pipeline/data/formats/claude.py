"""Claude's export: a list of conversations, each a list of messages. Outputs are the user's own messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from msgspec import Struct

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.foreign_forms import convert
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import TextPart, Time, Turn, clean_text, join_parts, known_time, pair_turns

BROKEN = "conversations without messages"
NO_TEXT = "messages without text"


class _Message(Struct):
    sender: str | None = None
    content: list[TextPart] | None = None
    text: str | None = None  # the only content in older exports; in newer ones it also mentions non-text content
    created_at: Time = None


class _Conversation(Struct):
    name: str | None = None
    chat_messages: list[_Message] | None = None


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of conversations with `chat_messages`."""
    return sample.is_json_list and sample.record is not None and "chat_messages" in sample.record


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Rows with the assistant's message as input, and the user's reply as output.

    If the user writes first, the conversation's name is the input.
    """
    for number, value in enumerate(iter_array(stream, file, findings), 1):
        place = SourceLocation(file, number)
        conversation = convert(value, _Conversation, place, findings)
        if conversation is None:
            continue
        if not conversation.chat_messages:
            findings.skip_counts[BROKEN] += 1
            continue
        said = (each for each in conversation.chat_messages if each.sender in ("human", "assistant"))
        turns = (_turn(message, place, findings) for message in said)
        yield from pair_turns(turns, findings, clean_text(conversation.name))


def _turn(message: _Message, place: SourceLocation, findings: ParseFindings) -> Turn:
    text = join_parts(message.content or []) or clean_text(message.text)  # leaves out the parts for thoughts and tools
    if not text:
        findings.skip_counts[NO_TEXT] += 1
    return Turn(message.sender == "human", text, known_time(message.created_at), place)
