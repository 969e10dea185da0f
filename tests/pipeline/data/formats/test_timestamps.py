"""Moments in one sortable form."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta_cli.pipeline.data.formats.timestamps import normalise_time


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("2026", "2026"),
        ("2026-08", "2026-08"),
        (" 2026-08-01 ", "2026-08-01"),
        ("20260801", "2026-08-01"),
        ("2026-08-01T12:30:00Z", "2026-08-01T12:30:00"),
        ("2026-08-01 12:30", "2026-08-01T12:30:00"),
        ("2026-08-01T01:30:00+02:00", "2026-07-31T23:30:00"),
        ("2026-08-01T12:30:00.5", "2026-08-01T12:30:00.500000"),
        ("2026/8/1", "2026-08-01"),
        ("964982703", "2000-07-30T18:45:03"),
        ("1700000000", "2023-11-14T22:13:20"),
        ("1700000000123", "2023-11-14T22:13:20"),
        ("1700000000.0", "2023-11-14T22:13:20"),
    ],
)
def test_is_normalised(written: str, stored: str) -> None:
    assert normalise_time(written) == stored


@pytest.mark.parametrize(
    "written",
    [
        "",
        "today",
        "2026-13",
        "2026-02-30",
        "0000",
        "01/08/2026",
        "12345678",
        "2026/13/1",
        "17000000001",
        "2026-08-01T25:00",
        "0001-01-01T00:00+14:00",
        "\u0662\u0660\u0662\u0666",
        "2026-08-01T12:30:00+99:00",
        "2026-8-1",
        "20268",
    ],
)
def test_anything_else_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        normalise_time(written)


@given(st.datetimes(), st.datetimes())
def test_sorts_as_text(first: object, second: object) -> None:
    texts = [normalise_time(first.isoformat()), normalise_time(second.isoformat())]  # type: ignore[attr-defined]
    assert (texts[0] < texts[1]) == (first < second)  # type: ignore[operator]


@given(st.text(max_size=40))
def test_raises_nothing_but_value_error(written: str) -> None:
    with suppress(ValueError):
        assert normalise_time(normalise_time(written)) == normalise_time(written)
