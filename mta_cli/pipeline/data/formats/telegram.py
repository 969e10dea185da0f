"""Telegram's export: personal chats, one (`messages`) or all (`chats.list`). Memory holds one message at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.json_array import JsonText
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.rows import RawRow
from mta_cli.pipeline.data.formats.turns import Turn, clean_text, known_time, pair_turns

NOT_PERSONAL = "chats that are not with one user"
SERVICE, NO_TEXT, FORWARDED, NO_AUTHOR = (
    "service messages",
    "messages without text",
    "forwarded messages, and those of a bot",
    "messages without an author",
)
_ONE_CHAT = re.compile(
    rb'\{\s*"name"\s*:.{0,2000}?"type"\s*:\s*"'
    rb'(personal_chat|bot_chat|saved_messages|private_(group|supergroup|channel)|public_(supergroup|channel))"',
    re.DOTALL,
)
_ALL_CHATS = re.compile(rb'\{\s*"about"\s*:\s*"[^"]{0,2000}Telegram')


def recognise(sample: FileSample) -> bool:
    """Whether the file begins as an export of one chat, or of the whole account."""
    return bool(_ONE_CHAT.match(sample.start) or _ALL_CHATS.match(sample.start))


def read_rows(stream: BinaryIO, file: str, findings: ParseFindings) -> Iterator[RawRow]:
    """The other's turn and the user's next one, of every personal chat."""
    text = JsonText(stream, file)
    if text.peek() != "{":
        text.fail("Expecting an object")
    yield from _read_chat(text, file, findings, whole=True)
    text.require_end()


def _read_chat(text: JsonText, file: str, findings: ParseFindings, *, whole: bool = False) -> Iterator[RawRow]:
    """The rows of the chat that begins here; `whole`: it may also be the whole export, with chats inside."""
    about: dict[str, Any] = {}
    for key in text.names():
        if key == "messages" and text.peek() == "[":
            if about.get("type") == "personal_chat":
                yield from pair_turns(_read_turns(text, str(about.get("id")), file, findings), findings)
            else:
                findings.skip_counts[NOT_PERSONAL] += 1
                for _ in text.members():
                    text.read_value()
        elif whole and key in ("chats", "left_chats") and text.peek() == "{":
            for inner in text.names():
                if inner == "list" and text.peek() == "[":
                    for _ in text.members():
                        if text.peek() == "{":
                            yield from _read_chat(text, file, findings)
                        else:
                            text.read_value()
                else:
                    text.read_value()
        else:
            about[key] = text.read_value()


def _read_turns(text: JsonText, other: str, file: str, findings: ParseFindings) -> Iterator[Turn]:
    """The turns of a chat with the user whose number is `other`: all messages but theirs are the user's own."""
    for _ in text.members():
        message = text.read_value()
        if not isinstance(message, dict) or message.get("type") != "message":
            findings.skip_counts[SERVICE] += 1
        elif not isinstance(author := message.get("from_id"), str | int):
            findings.skip_counts[NO_AUTHOR] += 1
        else:
            words = _words(message.get("text"))
            if "forwarded_from" in message or "via_bot" in message:
                findings.skip_counts[FORWARDED] += 1
                words = ""
            elif not words:
                findings.skip_counts[NO_TEXT] += 1
            time = known_time(message.get("date_unixtime")) or known_time(message.get("date"))
            mine = str(author).removeprefix("user") != other
            yield Turn(mine, words, time, SourceLocation(file, text.values_read))


def _words(text: object) -> str:
    """A message's text, which may be a list of plain pieces and of entities such as links."""
    pieces = text if isinstance(text, list) else [text]
    texts = (piece.get("text") if isinstance(piece, dict) else piece for piece in pieces)
    return clean_text("".join(each for each in texts if isinstance(each, str)))
