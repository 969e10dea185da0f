"""Bytes to documents and lines: everything that a file can be instead of what it should be."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_cli.errors import BadInput, MtaError, NotFound
from mta_cli.pipeline.data.formats import reading
from mta_cli.pipeline.data.formats.json_array import JsonText, read_document
from mta_cli.pipeline.data.formats.parse_results import ParseFindings
from mta_cli.pipeline.data.formats.reading import iter_lines, open_file


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b'[{"id": "1", "inp', "is cut short"),
        (b'[{"id": "1"}', "is cut short"),
        (b"{'id': 1}", "is not JSON"),
        (b'"caf\xe9"', "is not UTF-8: byte 0xe9 at offset 4"),
        (b'\xef\xbb\xbf"\xff"', "is not UTF-8: byte 0xff at offset 4"),
        ("[]".encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8b\x08", "is compressed with gzip"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"[NaN]", "NaN is not a JSON value"),
        (b"[-Infinity]", "-Infinity is not a JSON value"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deep"),
        (b"9" * 10_000, "digits"),
        (b"\0" * 100, "is not JSON"),
    ],
)
def test_what_is_no_document(content: bytes, what: str) -> None:
    with pytest.raises(BadInput) as caught:
        JsonText(io.BytesIO(content), "f.json").read_whole()
    assert what in caught.value.message
    assert caught.value.message.startswith("f.json")


def test_a_byte_order_mark_is_no_fault() -> None:
    assert JsonText(io.BytesIO(b"\xef\xbb\xbf[1]"), "f.json").read_whole() == [1]


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no file"):
        read_document(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_path_that_cannot_be_one(name: str) -> None:
    with pytest.raises(MtaError):
        read_document(Path(name))


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a directory"):
        read_document(tmp_path)


def test_a_file_above_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as stream:
        stream.truncate(reading.FILE_BYTES + 1)
    with pytest.raises(BadInput, match=r"large.json has 1,024 MiB; the most is 1,024 MiB") as caught:
        read_document(path)
    assert caught.value.hint is not None
    assert "split" in caught.value.hint


def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(BadInput, match="is a pipe, socket or device"):
        read_document(Path("/dev/zero"))


def test_two_hundred_megabytes_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as stream:
        stream.truncate(200 * 2**20)
    findings = ParseFindings()
    with open_file(path) as stream:
        assert list(iter_lines(stream, path.name, findings)) == []
    assert findings.fault_lines == ["sparse.jsonl: record 1: the line is longer than 10,000,000 bytes"]


def test_lines_above_the_limit_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LINE_BYTES", 10)
    findings = ParseFindings()
    content = b"\xef\xbb\xbfone\n" + b"x" * 35 + b"\ntwo"
    assert list(iter_lines(io.BytesIO(content), "f", findings)) == [(1, b"one\n"), (3, b"two")]
    assert findings.fault_count == 1


def test_endless_lines_end_at_the_limit_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "FILE_BYTES", 100)
    with pytest.raises(BadInput, match="the most is"):
        list(iter_lines(io.BytesIO(b"0123456789\n" * 20), "f", ParseFindings()))


@given(st.binary(max_size=200))
def test_bytes_raise_nothing_but_bad_input(content: bytes) -> None:
    with suppress(BadInput):
        json.dumps(JsonText(io.BytesIO(content), "f").read_whole())
