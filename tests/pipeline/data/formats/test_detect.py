"""Which format a file has."""

from __future__ import annotations

import io
import json

import pytest

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.detect import detect_format, is_certainly_importable, read_sample, require_format
from tests.pipeline.histories import person, rows, tagged

LAMP = [{"id": "1", "user_id": "ann", "input": "a plot", "profile": [tagged(1)]}]
LONG_LAMP = [{"id": "1", "profile": [tagged(number) for number in range(5_000)], "input": "a plot"}]
CONTENTS = {
    "lamp": json.dumps(LAMP),
    "lamp, longer than a sample": json.dumps(LONG_LAMP),
    "users": json.dumps([person("ann")], indent=2),
    "users without a history": json.dumps([{"user_id": "ann", "query": []}]),
    "json": json.dumps(rows()),
    "jsonl": "\n".join(json.dumps(row) for row in rows()),
    "csv": "user,input,output\nann,i,o\n",
    "csv with semicolons": "\n\nuser;input;output\nann;i;o\n",
    "csv with tabs": "user\tinput\toutput\nann\ti\to\n",
    "csv with a mark": "\ufeffuser,input,output\n",
    "parquet": "PAR1\0\0",
    "mbox": "From x@y Mon Mar 02 08:15:00 2026\nFrom: x@y\n\n",
    "eml": "Received: by x;\n  Mon, 2 Mar 2026\nfrom: x@y\nSubject: z\n\n",
    "telegram": json.dumps({"name": None, "type": "personal_chat", "id": 1, "messages": []}, indent=1),
    "telegram, all chats": json.dumps({"about": "Remember: Telegram", "chats": {}}),
    "telegram, a group": json.dumps({"name": "x", "type": "private_group", "id": 1}),
    "whatsapp": "02/03/2026, 08:15 - Bob: x\n",
    "whatsapp, of an iPhone": "\u200e[3/2/26, 8:15:00\u202fAM] Bob: \u200eimage omitted\r\n",
    "slack": json.dumps([{"type": "message", "ts": "1772438400.000100", "text": "x"}], indent=1),
    "discord": json.dumps({"guild": {"id": "1"}, "channel": {}, "messages": []}, indent=2),
    "discord, the data package": json.dumps([{"ID": 1, "Timestamp": "x", "Contents": "x", "Attachments": ""}]),
    "discord, the data package's table": "ID,Timestamp,Contents,Attachments\n",
    "chatgpt": json.dumps([{"title": "x", "mapping": {}}]),
    "claude": json.dumps([{"name": "x", "chat_messages": []}]),
    "messages": json.dumps({"messages": [{"role": "user", "content": "x"}]}),
    "messages, ShareGPT's": json.dumps([{"id": "1", "conversations": [{"from": "human", "value": "x"}]}]),
}


def detected(content: str | bytes, name: str = "data") -> str | None:
    raw = content if isinstance(content, bytes) else content.encode()
    stream = io.BytesIO(raw)
    sample = read_sample(stream, name)
    assert stream.tell() == 0
    return detect_format(sample)


@pytest.mark.parametrize("name", CONTENTS)
def test_by_the_content(name: str) -> None:
    assert detected(CONTENTS[name]) == name.partition(",")[0].split()[0]
    assert detected(CONTENTS[name], "wrong.jsonl") == name.partition(",")[0].split()[0]


@pytest.mark.parametrize("name", ["jsonl", "messages"])
def test_a_first_line_longer_than_the_sample_is_read_to_its_end(name: str) -> None:
    record = json.loads(CONTENTS[name].partition("\n")[0])
    assert detected(json.dumps({"more": "x" * 70_000, **record}) + "\n") == name


def test_every_format_is_recognised_by_one_content() -> None:
    files = {name for name, each in FORMATS.items() if each.kind != "repository"}
    assert {detected(content) for content in CONTENTS.values()} == files


@pytest.mark.parametrize(
    ("content", "name", "found"),
    [
        ("note\nfirst\n", "notes.csv", "csv"),
        ('{"user": "ann", ', "a.JSONL", "jsonl"),
        ("[1, 2]", "a.json", "json"),
        ("note\nfirst\n", "notes.txt", None),
        ("From here on: nothing\nis a mail.\n", "notes.txt", None),
        ("To do: from: x\nnothing\n", "notes.txt", None),
        ("From: x@y", "a.eml", "eml"),
        ("[[[", "x", None),
        ("[]", "2026-03-02.json", "slack"),
        ("02/03/2026: a day - and more\n", "diary.txt", None),
        ("[02/03/2026] a day\n", "diary.txt", None),
        (b"\0" * 100, "x", None),
        (b"\xff\xfa", "x", None),
    ],
)
def test_by_the_name_where_the_content_does_not_say(content: str | bytes, name: str, found: str | None) -> None:
    assert detected(content, name) == found


@pytest.mark.parametrize(
    ("content", "named", "other"),
    [
        ("csv", "jsonl", "csv"),
        ("jsonl", "csv", "jsonl"),
        ("json", "jsonl", "json"),
        ("users", "json", "users"),
        ("lamp", "users", "lamp"),
        ("users", "lamp", "users"),
        ("jsonl", "users", "jsonl"),
        ("parquet", "csv", "parquet"),
    ],
)
def test_another_format_than_the_named_one_is_one_line(content: str, named: str, other: str) -> None:
    with pytest.raises(BadInput) as caught:
        require_format(read_sample(io.BytesIO(CONTENTS[content].encode()), "data"), named)
    assert caught.value.message == f"data looks like {other}, not {named}"
    assert caught.value.hint == f"leave the format out, or use {other}"


def test_what_no_format_recognises_is_read_as_named_and_else_refused() -> None:
    sample = read_sample(io.BytesIO(b"one\ntwo\n"), "data")
    assert require_format(sample, "csv") == "csv"
    with pytest.raises(BadInput, match="data is in no known format"):
        require_format(sample, None)


@pytest.mark.parametrize(("content", "what"), [(b"", "is empty"), (b" \n", "is empty"), (b"PK\x03\x04", "zip archive")])
def test_empty_and_packed_files(content: bytes, what: str) -> None:
    with pytest.raises(BadInput, match=what):
        read_sample(io.BytesIO(content), "f")


@pytest.mark.parametrize(
    ("content", "name", "known"),
    [
        (b"a,b\n", "a.csv", True),
        (b"Dear all, hello\n", "README.md", False),
        (b"", "a.csv", False),
        (b"PK\x03\x04", "a.csv", False),
        (b'{"a": 1}\n', "a.txt", True),
    ],
)
def test_prose_in_a_folder_is_no_table(content: bytes, name: str, known: bool) -> None:
    assert is_certainly_importable(io.BytesIO(content), name) is known
