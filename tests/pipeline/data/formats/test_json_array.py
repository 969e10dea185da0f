"""Arrays that are read member by member: the same values as in one piece, and a line for everything else."""

from __future__ import annotations

import io
import json
import tracemalloc
from contextlib import suppress
from typing import Any, BinaryIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats import json_array
from mta_cli.pipeline.data.formats.json_array import iter_array
from mta_cli.pipeline.data.formats.parse_results import ParseFindings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def members(content: bytes) -> tuple[list[Any], list[str]]:
    findings = ParseFindings()
    return list(iter_array(io.BytesIO(content), "f.json", findings)), findings.fault_lines


@settings(deadline=None)
@example([-0.0], False, None, 4)  # a chunk ends between a number's point and its digits
@example([1e300, -1.5e-7], False, None, 4)
@given(st.lists(VALUES, min_size=1, max_size=5), st.booleans(), st.sampled_from([None, 1]), st.integers(4, 40))
def test_any_array_in_any_chunks(values: list[Any], ascii: bool, indent: int | None, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK_BYTES", size)
        text = json.dumps(values, ensure_ascii=ascii, indent=indent)
        assert members(text.encode("utf-8", "surrogatepass")) == (values, [])


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('[]{},:"0123456789.e-ntf \\u', max_size=60).map(str.encode))
def test_any_bytes_are_members_or_bad_input(content: bytes) -> None:
    try:
        found, faults = members(content)
    except BadInput:
        with suppress(ValueError):
            assert not isinstance(json.loads(content, parse_constant=float), list)
        return
    if not faults:
        assert found == json.loads(content.decode("utf-8-sig"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "f.json is empty"),
        (b" \n ", "f.json is empty"),
        (b"\xef\xbb\xbf", "f.json is empty"),
        (b'[{"id": "1", "inp', "is cut short: Unterminated string starting at (record 1)"),
        (b'[{"id": "1"}', "is cut short"),
        (b'[{"id": "1"}, ', "is cut short: Expecting value (record 2)"),
        (b"[", "is cut short"),
        (b"[1 2]", "is not JSON: Expecting ',' delimiter (record 1)"),
        (b"[1] 2", "is not JSON: Extra data"),
        (b"[1,]", "is not JSON: Expecting value (record 2)"),
        (b"{'id': 1}", "is an object, not a list"),
        (b"[{'id': 1}" + b" " * 90, "is not JSON: Expecting property name"),
        (b'["caf\xe9"]', "is not UTF-8: byte 0xe9 at offset 5"),
        (b'\xef\xbb\xbf["\xff"]', "is not UTF-8: byte 0xff at offset 5"),
        (b'["\xc3', "is not UTF-8: byte 0xc3 at offset 2"),
        ("[]".encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8b\x08", "is compressed with gzip"),
        (b"[NaN]", "NaN is not a JSON value"),
        (b"[-Infinity]", "-Infinity is not a JSON value"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
        (b"[" + b"9" * 10_000 + b"]", "digits"),
        (b"\0" * 100, "is not JSON"),
        (b"null", "is null, not a list"),
        (b'"x"', "is text, not a list"),
        (b"-3", "is a number, not a list"),
        (b"true", "is true or false, not a list"),
        (b"[ ]", "is an empty list"),
    ],
)
@pytest.mark.parametrize("size", [4, 5, 1 << 20])
def test_what_is_no_array(content: bytes, what: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "CHUNK_BYTES", size)
    try:
        _, said = members(content)
    except BadInput as error:
        said = [error.message]
    assert len(said) == 1 and what in said[0] and said[0].startswith("f.json")


def test_memory_holds_a_member_not_the_file() -> None:
    piece = b'{"id": "a member", "input": "some words"},' * 25_000
    pieces = iter([b"[", *[piece] * 12, b"1]"])

    class Chunks(io.RawIOBase):
        """Twelve megabytes, as they are asked for."""

        def read(self, size: int = -1) -> bytes:
            return next(pieces, b"")

    stream: BinaryIO = Chunks()  # type: ignore[assignment]
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter_array(stream, "f.json", ParseFindings()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 12 * 25_000 + 1 and peak < 6_000_000


def test_a_file_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.pipeline.data.formats.reading.FILE_BYTES", 100)
    with pytest.raises(BadInput, match="the most is"):
        members(b"[" + b"1," * 100 + b"1]")
