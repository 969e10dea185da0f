"""Parquet tables."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from mta_cli.errors import BadInput, UsageError
from mta_cli.pipeline.data.formats.parquet import read_rows
from mta_cli.pipeline.data.formats.parse_results import ParseFindings
from mta_cli.pipeline.data.formats.rows import parse_rows
from tests.pipeline.histories import staged


def parquet(columns: dict[str, list[Any]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    sink = io.BytesIO()
    write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def test_cells_are_plain_values() -> None:
    seen = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    raw = parquet({"user": ["ann", None], "stars": [4, 5], "price": [Decimal("1.50")] * 2, "seen": [seen] * 2})
    rows = list(read_rows(io.BytesIO(raw), "f", ParseFindings()))
    assert [place.record for place, _ in rows] == [1, 2]
    assert dict(rows[0][1]) == {"user": "ann", "stars": 4, "price": "1.50", "seen": "2026-01-02T03:04:00+00:00"}
    assert rows[1][1]["user"] is None


def test_a_row_with_a_time_that_python_cannot_hold_is_kept() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    days, moments = pyarrow.array([2932897, 1], pyarrow.date32()), pyarrow.array([1_001, 1], pyarrow.timestamp("ns"))
    raw = parquet({"user": ["ann", "ann"], "input": ["a", "b"], "output": ["c", "d"], "time": days, "seen": moments})
    findings = ParseFindings()
    rows = list(read_rows(io.BytesIO(raw), "f", findings))
    assert rows[0][1]["seen"].replace("T", " ") == "1970-01-01 00:00:00.000001001"  # pandas, if it is there, writes a T
    found = list(parse_rows(rows, "free", findings, staged(), keep_untimed=True))
    assert [record.item.time for record in found] == [None, "1970-01-02"]
    assert "'10000-01-01' is not an ISO 8601 date" in findings.unread_time_example


@pytest.mark.parametrize("cut", [4, 40, -8])
def test_a_damaged_file_is_one_line(cut: int) -> None:
    raw = parquet({"user": ["ann"] * 50})[:cut]
    with pytest.raises(BadInput, match="f is not a Parquet file that can be read: ") as caught:
        list(read_rows(io.BytesIO(raw), "f", ParseFindings()))
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_hint_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="need pyarrow") as caught:
        list(read_rows(io.BytesIO(b"PAR1"), "f", ParseFindings()))
    assert caught.value.hint == "pip install '.[parquet]' in a checkout of mta"
