"""ChatGPT's export: a list of conversations, each a tree of messages. The user's own words are what was asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import Turn, clean_text, known_time, pair_turns

BROKEN = "conversations whose messages do not lead to the last one"
NO_TEXT = "messages without text"


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of conversations with a tree each."""
    return sample.is_json_list and sample.record is not None and isinstance(sample.record.get("mapping"), dict)


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """The assistant's message (the title before the first) and the user's next one, of what each conversation shows."""
    for number, conversation in enumerate(iter_array(stream, file, findings), 1):
        shown = _shown_nodes(conversation) if isinstance(conversation, dict) else None
        if shown is None:
            findings.skip_counts[BROKEN] += 1
            continue
        place = SourceLocation(file, number)
        turns = (turn for node in shown if (turn := _turn(node.get("message"), place, findings)) is not None)
        yield from pair_turns(turns, findings, clean_text(conversation.get("title")))


def _shown_nodes(conversation: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The nodes from the root to the current one; None where a parent is missing, or comes twice."""
    nodes, key = conversation.get("mapping"), conversation.get("current_node")
    if not isinstance(nodes, dict) or key is None:
        return None
    path, seen = [], set[str]()
    while key is not None:
        node = nodes.get(key) if isinstance(key, str) and key not in seen else None
        if not isinstance(node, dict):
            return None
        seen.add(key)
        path.append(node)
        key = node.get("parent")
    return path[::-1]


def _turn(message: object, place: SourceLocation, findings: ParseFindings) -> Turn | None:
    """The turn of a message between user and assistant; None for hidden ones. Calls of tools have no text."""
    if not isinstance(message, dict):
        return None
    author, content, about = (_object(message.get(name)) for name in ("author", "content", "metadata"))
    hidden = message.get("weight") == 0 or about.get("is_visually_hidden_from_conversation")
    if hidden or author.get("role") not in ("user", "assistant"):
        return None
    to_tool = message.get("recipient", "all") != "all"
    parts = content.get("parts") if not to_tool and content.get("content_type") in ("text", "multimodal_text") else None
    text = "\n".join(filter(None, map(clean_text, parts))) if isinstance(parts, list) else ""
    if not text and not to_tool:
        findings.skip_counts[NO_TEXT] += 1
    return Turn(author["role"] == "user", text, known_time(message.get("create_time")), place)


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
