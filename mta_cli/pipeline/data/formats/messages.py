"""Conversations for training: OpenAI's `messages` and ShareGPT's `conversations`, in JSONL or a JSON list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from mta_cli.pipeline.data.formats import json_lines, json_records
from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.parse_results import ParseFindings
from mta_cli.pipeline.data.formats.reading import BOM
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import clean_text

NO_ANSWER = "conversations whose last question has no answer"
_LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "model": "assistant"}


def recognise(sample: FileSample) -> bool:
    """Whether the first record has a list of messages, each with an author and a content."""
    return sample.record is not None and _messages(sample.record) is not None


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """Each record's last question as `input` and the last answer to it as `output`, beside its other fields."""
    start = stream.read(len(BOM) + 1_000).removeprefix(BOM).lstrip()
    stream.seek(0)
    form = json_records if start.startswith(b"[") else json_lines
    for place, record in form.read_rows(stream, file, findings):
        question, answer = _last_exchange(_messages(record) or [])
        if not question or not answer:
            findings.skip_counts[NO_ANSWER] += 1
            continue
        yield (
            place,
            {name: cell for name, cell in record.items() if name not in _LISTS}
            | {
                "input": question,
                "output": answer,
            },
        )


def _messages(record: Any) -> list[tuple[str, str]] | None:
    """(role, text) of each message that counts; None where the record has no such list."""
    for name, (author, content) in _LISTS.items():
        messages = record.get(name)
        if isinstance(messages, list) and messages and isinstance(messages[0], dict):
            found = [each for each in messages if isinstance(each, dict)]
            own = (author, content) if author in messages[0] else ("role", "content")
            if own[0] in messages[0]:
                return [
                    (_ROLES.get(str(each.get(own[0])), ""), _text(each.get(own[1])))
                    for each in found
                    if each.get("weight") != 0
                ]
    return None


def _last_exchange(messages: list[tuple[str, str]]) -> tuple[str, str]:
    question = answer = ""
    for role, text in messages:
        if role == "user":
            question, answer = text, ""
        elif role == "assistant":
            answer = text or answer
    return question, answer


def _text(content: object) -> str:
    """A message's text, also where it is a list of parts."""
    if not isinstance(content, list):
        return clean_text(content)
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "\n".join(filter(None, map(clean_text, texts)))
