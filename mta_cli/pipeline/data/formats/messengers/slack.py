"""Reads Slack's export: a folder with `users.json`, and for each channel a folder with a file of messages a day."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar

from msgspec import Struct

from mta_cli.pipeline.data.formats.archive import ArchivedFile
from mta_cli.pipeline.data.formats.detect import FileSample
from mta_cli.pipeline.data.formats.foreign_forms import convert
from mta_cli.pipeline.data.formats.json_array import JsonText, read_document
from mta_cli.pipeline.data.formats.messengers.message import NO_TEXT, OF_BOTS, SERVICE, Message
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, SourceLocation
from mta_cli.pipeline.data.formats.turns import Time, clean_text, known_time

FileT = TypeVar("FileT", Path, ArchivedFile)
NO_AUTHOR = "messages without an author"
_PEOPLE = ("users.json", "org_users.json")
_LISTS = ("channels.json", "groups.json", "dms.json", "mpims.json")
_IS_DAY = re.compile(r"\d{4}-\d\d-\d\d\.json", re.ASCII)
_OWN_SUBTYPES = (None, "me_message", "thread_broadcast", "file_share")
_MARKUP = re.compile(r"<([^<>]*)>")


class _Profile(Struct):
    real_name: str | None = None
    display_name: str | None = None
    email: str | None = None


class _Person(Struct):
    id: str
    name: str | None = None
    real_name: str | None = None
    profile: _Profile | None = None


class _Message(Struct):
    type: str | None = None
    subtype: str | None = None
    user: str | None = None
    bot_id: str | None = None
    text: str | None = None
    ts: Time = None
    thread_ts: Time = None
    user_profile: _Profile | None = None


def day_files(files: Sequence[FileT]) -> list[FileT]:
    """The message files of the Slack exports among these files; empty without an export.

    An export has a list of users and a list of conversations in one folder.
    """
    lists = ({file.parent for file in files if file.name in names} for names in (_PEOPLE, _LISTS))
    exports = set.intersection(*lists)
    return [file for file in files if _IS_DAY.fullmatch(file.name) and file.parent.parent in exports]


def recognise(sample: FileSample) -> bool:
    """Whether the file is a list of messages with Slack's times, or a list without records in a file named by a day."""
    record = sample.record
    if record is not None:
        return sample.is_json_list and record.get("type") == "message" and isinstance(record.get("ts"), str)
    return sample.is_json_list and _IS_DAY.fullmatch(sample.name) is not None


def read_messages(stream: BinaryIO, path: Path | ArchivedFile, findings: ParseFindings) -> Iterator[Message]:
    """The messages of one day of a conversation. The folder's name identifies the conversation."""
    file = f"{path.parent.name}/{path.name}"
    people = _read_people(path)
    text = JsonText(stream, file)
    if text.peek() != "[":
        text.fail("Expecting a list")
    for number, _ in enumerate(text.members(), 1):
        place = SourceLocation(file, number)
        message = convert(text.read_value(), _Message, place, findings)
        if message is not None:
            yield from _read_message(message, path.parent.name, place, people, findings)
    text.require_end()


def _read_message(
    message: _Message,
    conversation: str,
    place: SourceLocation,
    people: Mapping[str, tuple[str, ...]],
    findings: ParseFindings,
) -> Iterator[Message]:
    if message.type != "message" or message.subtype not in (*_OWN_SUBTYPES, "bot_message"):
        findings.skip_counts[SERVICE] += 1
        return
    sender = message.user or message.bot_id or ""
    names: tuple[str, ...] = ()
    text = markup_to_text(message.text or "", people)
    if message.bot_id or message.subtype == "bot_message":
        findings.skip_counts[OF_BOTS] += 1
        text = ""
    elif not sender:
        findings.skip_counts[NO_AUTHOR] += 1
        return
    else:
        names = people.get(sender) or (*_names(message.user_profile), sender)
        if not text:
            findings.skip_counts[NO_TEXT] += 1
    yield Message(conversation, place, sender, names, text, known_time(message.ts), threads=_threads(message))


def _threads(message: _Message) -> tuple[str, ...]:
    """The message's threads: its own thread for a reply, "" (the main conversation) else, both if it opens a thread."""
    if message.thread_ts is None:
        return ("",)
    thread = str(message.thread_ts)
    return ("", thread) if thread == str(message.ts) else (thread,)


def markup_to_text(text: str, people: Mapping[str, tuple[str, ...]]) -> str:
    """Slack's markup as plain text: names instead of ids, links without brackets, and no HTML entities."""
    shown = _MARKUP.sub(lambda found: _visible_text(found[1], people), text)
    return clean_text(shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def _visible_text(inside: str, people: Mapping[str, tuple[str, ...]]) -> str:
    """The visible text of a mention, channel, command such as `!here`, or link; a label after `|` replaces it."""
    target, _, label = inside.partition("|")
    mark, rest = target[:1], target[1:]
    if mark == "@":
        return f"@{label or next(iter(people.get(rest, ())), rest)}"
    if mark == "#":
        return f"#{label or rest}"
    if mark == "!":
        return label or f"@{rest}"
    return label or target.removeprefix("mailto:")


def _read_people(day: Path | ArchivedFile) -> Mapping[str, tuple[str, ...]]:
    """The names of each user by id, from the users' list of the export that has the file `day`; empty without it."""
    for name in _PEOPLE:
        if isinstance(day, ArchivedFile):
            if (archived := day.find(day.parent.parent / name)) is not None:
                return _read_people_cached(archived, 0)
        elif os.path.isfile(path := day.absolute().parent.parent / name):
            return _read_people_cached(path, path.stat().st_mtime_ns)
    return {}


@lru_cache(maxsize=1)  # called for every file of the export
def _read_people_cached(path: Path | ArchivedFile, changed: int) -> Mapping[str, tuple[str, ...]]:
    entries = read_document(path)
    place, unused = SourceLocation(path.name), ParseFindings()
    listed = (convert(entry, _Person, place, unused) for entry in (entries if isinstance(entries, list) else ()))
    return {each.id: (*_names(each.profile, each.real_name, each.name), each.id) for each in listed if each is not None}


def _names(profile: _Profile | None, *more: str | None) -> tuple[str, ...]:
    """The different names, the name that Slack shows first."""
    own = (profile.real_name, profile.display_name, profile.email) if profile is not None else ()
    return tuple(dict.fromkeys(name for name in map(clean_text, (*own, *more)) if name))
