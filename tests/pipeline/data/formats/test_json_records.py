"""A JSON list of records."""

from __future__ import annotations

import io

from mta_cli.pipeline.data.formats.json_records import read_rows
from mta_cli.pipeline.data.formats.parse_results import ParseFindings


def test_objects_are_rows_and_others_are_faults() -> None:
    findings = ParseFindings()
    rows = list(read_rows(io.BytesIO(b'[{"a": 1}, 2, {"a": 3}]'), "f", findings))
    assert [(place.record, dict(row)) for place, row in rows] == [(1, {"a": 1}), (3, {"a": 3})]
    assert findings.fault_lines == ["f: record 2: is a number, not an object"]
