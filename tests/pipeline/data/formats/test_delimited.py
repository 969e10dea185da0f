"""Tables as text."""

from __future__ import annotations

import io

import pytest

from mta_cli.pipeline.data.formats.delimited import read_rows
from mta_cli.pipeline.data.formats.parse_results import ParseFindings


@pytest.mark.parametrize(
    "content",
    [
        b'film,note\nSalt,"sea, mostly"\n',
        b"film;note\nSalt;sea, mostly\n",
        b"film\tnote\r\nSalt\tsea, mostly\r\n",
        b'\xef\xbb\xbf"film";"note"\nSalt;"sea, mostly"',
    ],
)
def test_the_separator_is_the_one_that_makes_most_columns(content: bytes) -> None:
    rows = [dict(row) for _, row in read_rows(io.BytesIO(content), "f", ParseFindings())]
    assert rows == [{"film": "Salt", "note": "sea, mostly"}]


@pytest.mark.parametrize("header", [b'film,"your\r\nnote"\n', b'"film";"your\nnote"\n', b'film\t"your\nnote"\n'])
def test_a_name_of_a_column_may_have_a_line_break(header: bytes) -> None:
    separator = header.split(b"your")[0][-2:-1]
    content = header + separator.join([b"Salt", b"sea"]) + b"\n"
    found = list(read_rows(io.BytesIO(content), "f", ParseFindings()))
    assert [(place.line, row) for place, row in found] == [(3, {"film": "Salt", "your note": "sea"})]


@pytest.mark.parametrize("rows", [0, 30_000])
def test_a_quote_of_the_header_that_nothing_closes_is_a_fault(rows: int) -> None:
    findings = ParseFindings()
    assert not list(read_rows(io.BytesIO(b'film,"note\n' + b"Salt,sea\n" * rows), "f", findings))
    assert findings.fault_lines == ["f, field header: is not CSV: unexpected end of data"]


def test_a_first_column_without_a_name_is_not_read_and_others_are_called_after_their_place() -> None:
    rows = [dict(row) for _, row in read_rows(io.BytesIO(b",film,,\n0,Salt,,\n1,Rye,oats,\n"), "f", ParseFindings())]
    assert rows == [{"film": "Salt"}, {"film": "Rye", "column 3": "oats"}]
