"""ChatGPT's export: a list of conversations, each a tree of messages. Outputs are the user's own messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from msgspec import Struct

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.foreign_forms import convert
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import Time, Turn, clean_text, known_time, pair_turns

BROKEN = "conversations with missing messages"
NO_TEXT = "messages without text"


class _Author(Struct):
    role: str | None = None


class _Content(Struct):
    content_type: str | None = None
    parts: list[str | dict[str, Any] | None] | None = None  # texts, and objects for pictures and files


class _Metadata(Struct):
    is_visually_hidden_from_conversation: bool | None = None


class _Message(Struct):
    author: _Author | None = None
    content: _Content | None = None
    metadata: _Metadata | None = None
    create_time: Time = None
    weight: float | None = None
    recipient: str | None = "all"  # or a tool


class _Node(Struct):
    parent: str | None = None
    message: _Message | None = None


class _Conversation(Struct):
    title: str | None = None
    mapping: dict[str, _Node] | None = None
    current_node: str | None = None


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of conversations with a tree each."""
    return sample.is_json_list and sample.record is not None and isinstance(sample.record.get("mapping"), dict)


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Rows with the assistant's message as input, and the user's reply as output, from each visible branch.

    If the user writes first, the conversation's title is the input.
    """
    for number, value in enumerate(iter_array(stream, file, findings), 1):
        place = SourceLocation(file, number)
        conversation = convert(value, _Conversation, place, findings)
        if conversation is None:
            continue
        shown = _current_branch(conversation)
        if not shown:
            findings.skip_counts[BROKEN] += 1
        turns = (turn for message in shown if (turn := _turn(message, place, findings)) is not None)
        yield from pair_turns(turns, findings, clean_text(conversation.title))


def _current_branch(conversation: _Conversation) -> list[_Message | None]:
    """The messages from the root to the current node; empty if a parent is missing or the tree has a cycle."""
    path: list[_Message | None] = []
    key, left = conversation.current_node, dict(conversation.mapping or {})
    while key is not None:
        node = left.pop(key, None)
        if node is None:
            return []
        path.append(node.message)
        key = node.parent
    return path[::-1]


def _turn(message: _Message | None, place: SourceLocation, findings: ParseFindings) -> Turn | None:
    """The turn of a message; None for a hidden message or another role. The text of tool calls is left out."""
    if message is None or message.author is None or message.author.role not in ("user", "assistant"):
        return None
    if message.weight == 0 or (message.metadata and message.metadata.is_visually_hidden_from_conversation):
        return None
    to_tool, content = message.recipient != "all", message.content or _Content()
    parts = content.parts if not to_tool and content.content_type in ("text", "multimodal_text") else None
    text = "\n".join(filter(None, (clean_text(part) for part in parts or () if isinstance(part, str))))
    if not text and not to_tool:
        findings.skip_counts[NO_TEXT] += 1
    return Turn(message.author.role == "user", text, known_time(message.create_time), place)
