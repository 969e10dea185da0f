"""Whatever is in a file, a parser ends with records or with findings, and never with another exception."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.formats import delimited, json_lines
from mta_cli.pipeline.data.formats.json_array import JsonText
from mta_cli.pipeline.data.formats.lamp import FieldMapping, parse_golds, parse_questions
from mta_cli.pipeline.data.formats.parse_results import ParseFindings, Record
from mta_cli.pipeline.data.formats.rows import parse_rows
from mta_cli.pipeline.data.formats.users import parse_users
from tests.pipeline.histories import staged

SHAPE = FieldMapping("free", ("input",), ("output",), str)
FIELDS = ["id", "user", "user_id", "input", "output", "profile", "query", "gold", "golds", "task", "time", "date"]

TEXTS = st.text(max_size=8) | st.sampled_from(
    ["", " ", "1", "ann", "\0", "\ud800", "\u202e", "--help", "2026-01-01", "\x1b[0m"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | TEXTS, inner, max_size=8),
    max_leaves=25,
)
ENTRY = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS[:5] + FIELDS[7:8] + FIELDS[9:], SCALARS))
LIKELY = st.lists(
    st.fixed_dictionaries(
        {},
        optional={"id": SCALARS, "user_id": SCALARS, "input": SCALARS, "profile": st.lists(ENTRY, max_size=3)}
        | {"query": st.lists(ENTRY, max_size=3), "time": SCALARS},
    ),
    max_size=3,
)


def sound(records: list[Record], findings: ParseFindings) -> None:
    """Records can be stored, and every fault is one printable line."""
    for record in records:
        for value in (record.user, record.item.key, record.item.input, record.item.output):
            assert value.strip()
            assert "\0" not in value
            value.encode()
    assert len(findings.fault_lines) == min(findings.fault_count, 20)
    for line in findings.fault_lines:
        assert line.isprintable(), repr(line)


@settings(deadline=None)
@given(DOCUMENTS | LIKELY)
def test_any_document(document: Any) -> None:
    entries = document if isinstance(document, list) else [document]
    for parse in (
        lambda findings: parse_questions(entries, {"1": "x"}, SHAPE, "f", findings, staged()),
        lambda findings: parse_users(entries, SHAPE, "f", findings, staged()),
    ):
        findings = ParseFindings()
        sound(list(parse(findings)), findings)
    findings = ParseFindings()
    parse_golds(document, "f", findings)
    sound([], findings)


@settings(deadline=None)
@given(st.lists(DOCUMENTS | ENTRY, max_size=4), st.none() | st.just("ann"))
def test_any_jsonl(values: list[Any], user: str | None) -> None:
    content = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    findings = ParseFindings()
    rows = json_lines.read_rows(io.BytesIO(content), "f", findings)
    sound(list(parse_rows(rows, "free", findings, staged(), user)), findings)
    mapping, findings = (
        ColumnMapping(user="id", input="{input} ({profile})", output="{output}", time="date"),
        ParseFindings(),
    )
    rows = json_lines.read_rows(io.BytesIO(content), "f", findings)
    sound(list(parse_rows(rows, "free", findings, staged(), None, mapping)), findings)


@settings(deadline=None)
@given(
    st.lists(st.binary(max_size=40), max_size=5),
    st.sampled_from([b"user,input,output\n", b"input;output\n", b"\xff\n", b""]),
)
def test_any_bytes_as_rows(lines: list[bytes], header: bytes) -> None:
    for form, user in ((delimited, "ann"), (json_lines, None)):
        findings = ParseFindings()
        rows = form.read_rows(io.BytesIO(header + b"\n".join(lines)), "f", findings)
        with suppress(BadInput):  # the first bytes of UTF-16 or of an archive
            sound(list(parse_rows(rows, "free", findings, staged(), user)), findings)


@given(DOCUMENTS)
def test_a_document_survives_writing_and_reading(document: Any) -> None:
    try:
        text = json.dumps(document, allow_nan=True).encode()
        JsonText(io.BytesIO(text), "f").read_whole()
    except BadInput as error:
        assert b"NaN" in text or b"Infinity" in text, error.message
