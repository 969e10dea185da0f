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


def test_a_first_column_without_a_name_is_not_read_and_others_are_called_after_their_place() -> None:
    rows = [dict(row) for _, row in read_rows(io.BytesIO(b",film,,\n0,Salt,,\n1,Rye,oats,\n"), "f", ParseFindings())]
    assert rows == [{"film": "Salt"}, {"film": "Rye", "column 3": "oats"}]
