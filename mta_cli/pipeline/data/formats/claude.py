"""Claude's export: a list of conversations, each a list of messages. The user's own words are what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import Turn, clean_text, known_time, pair_turns

BROKEN = "conversations without messages"
NO_TEXT = "messages without text"


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of conversations with `chat_messages`."""
    return sample.is_json_list and sample.record is not None and "chat_messages" in sample.record


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """The assistant's message (the conversation's name before the first) and the user's next one."""
    for number, conversation in enumerate(iter_array(stream, file, findings), 1):
        messages = conversation.get("chat_messages") if isinstance(conversation, dict) else None
        if not isinstance(messages, list) or not messages:
            findings.skip_counts[BROKEN] += 1
            continue
        place = SourceLocation(file, number)
        turns = (turn for message in messages if (turn := _turn(message, place, findings)) is not None)
        yield from pair_turns(turns, findings, clean_text(conversation.get("name")))


def _turn(message: object, place: SourceLocation, findings: ParseFindings) -> Turn | None:
    if not isinstance(message, dict) or message.get("sender") not in ("human", "assistant"):
        return None
    text = _text(message.get("content")) or clean_text(message.get("text"))
    if not text:
        findings.skip_counts[NO_TEXT] += 1
    return Turn(message["sender"] == "human", text, known_time(message.get("created_at")), place)


def _text(blocks: object) -> str:
    """The text among a message's blocks; thoughts and tools are left out."""
    if not isinstance(blocks, list):
        return ""
    texts = (block.get("text") for block in blocks if isinstance(block, dict) and block.get("type") == "text")
    return "\n".join(filter(None, map(clean_text, texts)))
