"""Conversations for training: OpenAI's `messages` and ShareGPT's `conversations`, in JSONL or a JSON list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from msgspec import Struct, field

from mta_cli.pipeline.data.formats import json_lines, json_records
from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.foreign_forms import convert
from mta_cli.pipeline.data.formats.parse_results import ParseFindings
from mta_cli.pipeline.data.formats.reading import BOM
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import TextPart, clean_text, join_parts

NO_ANSWER = "conversations whose last question has no answer"
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}


class _Message(Struct):
    role: str | None = None  # OpenAI's, with a content
    content: str | list[TextPart] | None = None
    author: str | None = field(name="from", default=None)  # ShareGPT's, with a value
    value: str | list[TextPart] | None = None
    weight: float | None = None


class _Conversation(Struct):
    messages: list[_Message] | None = None
    conversations: list[_Message] | None = None


def recognise(sample: FileSample) -> bool:
    """Whether the first record has a list of messages, the first of them with an author."""
    lists = [(sample.record or {}).get(name) for name in _Conversation.__struct_fields__]
    firsts = [messages[0] for messages in lists if isinstance(messages, list) and messages]
    return any(isinstance(first, dict) and {"role", "from"} & first.keys() for first in firsts)


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Yields each record with its last question as `input` and its last answer as `output`, and with its other
    fields.
    """
    start = stream.read(len(BOM) + 1_000).removeprefix(BOM).lstrip()
    stream.seek(0)
    form = json_records if start.startswith(b"[") else json_lines
    for place, record in form.read_rows(stream, file, findings):
        said = convert(record, _Conversation, place, findings)
        if said is None:
            continue
        question, answer = _last_exchange(said.messages or said.conversations or [])
        if not question or not answer:
            findings.skip_counts[NO_ANSWER] += 1
            continue
        others = {name: cell for name, cell in record.items() if name not in _Conversation.__struct_fields__}
        yield place, others | {"input": question, "output": answer}


def _last_exchange(messages: list[_Message]) -> tuple[str, str]:
    question = answer = ""
    for message in messages:
        role = _ROLES.get(message.role or message.author or "")
        content = message.content if message.role else message.value
        text = join_parts(content) if isinstance(content, list) else clean_text(content)
        if message.weight == 0 or role is None:
            continue
        question, answer = (text, "") if role == "user" else (question, text or answer)
    return question, answer
