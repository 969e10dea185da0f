"""Numbers and moments in plain words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mta_cli.text.formatting import format_age, loss_verdict, pluralise

NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (1.336, 1.320, "a little better"),
        (1.0, 0.9, "better"),
        (2.0, 1.0, "much better"),
        (1.0, 0.995, "no different"),
        (0.466, 0.488, "a little worse"),
        (1.0, 1.5, "much worse"),
        (0.0, 0.0, "no different"),
    ],
)
def test_a_change_of_a_loss_in_words(before: float, after: float, said: str) -> None:
    assert loss_verdict(before, after) == said


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (timedelta(seconds=20), "just now"),
        (timedelta(minutes=5), "5 min ago"),
        (timedelta(hours=2, minutes=50), "2 h ago"),
        (timedelta(hours=40), "40 h ago"),
        (timedelta(days=3), "3 days ago"),
        (timedelta(days=40), "2026-01-23"),
        (timedelta(hours=-30), "2026-03-05"),
    ],
)
def test_a_moment_by_its_age(before: timedelta, said: str) -> None:
    assert format_age((NOW - before).isoformat(), NOW) == said


def test_what_is_no_moment_stays() -> None:
    assert format_age("yesterday", NOW) == "yesterday" and format_age(None, NOW) is None
    assert format_age("2026-03-04T11:00:00", NOW) == "1 h ago"


def test_one_and_many() -> None:
    assert [pluralise(n, "item") for n in (0, 1, 1200)] == ["0 items", "1 item", "1,200 items"]
    assert pluralise(2, "query", "queries") == "2 queries"
