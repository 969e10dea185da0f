"""Numbers and moments in plain words."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mta_cli.text.formatting import (
    error_lines,
    finite_or_none,
    format_age,
    format_bytes,
    format_count,
    format_interval,
    format_number,
    format_p_value,
    format_seconds_number,
    join_words,
    loss_verdict,
    pluralise,
)

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


@pytest.mark.parametrize(
    ("value", "shown", "signed"),
    [
        (0.5, "0.500", "+0.500"),
        (-1.23456, "-1.235", "-1.235"),
        (-0.0001, "0.000", "+0.000"),
        (None, "–", "–"),
        (math.nan, "–", "–"),
    ],
)
def test_numbers_have_three_decimals(value: Any, shown: str, signed: str) -> None:
    assert format_number(value) == shown and format_number(value, signed=True) == signed


def test_an_interval_is_shown_as_far_as_it_is_known() -> None:
    assert format_interval({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert format_interval({"value": 0.5, "low": None, "high": 0.6}) == "0.500"
    assert format_interval({"value": None, "low": 0.4, "high": 0.6}) == format_interval(None) == "–"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (2.5, "2.5 B"),
        (104, "104 B"),
        (999.4, "999 B"),
        (999.5, "1 kB"),
        (1234, "1.2 kB"),
        (9960, "10 kB"),
        (77_000, "77 kB"),
        (1_612_800, "1.6 MB"),
        (42e9, "42 GB"),
        (None, "–"),
    ],
)
def test_sizes_are_short(value: Any, shown: str) -> None:
    assert format_bytes(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.00"), (0.004, "0.004"), (0.5, "0.50"), (4.26, "4.26"), (20.44, "20.4"), (1234.5, "1,234")],
)
def test_seconds_have_the_decimals_that_matter(value: float, shown: str) -> None:
    assert format_seconds_number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0004, "< 0.001"), (0.001, "0.001"), (0.0496, "0.050"), (1, "1.000"), (None, "–")]
)
def test_small_chances_are_not_made_smaller_than_they_are(value: Any, shown: str) -> None:
    assert format_p_value(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(77104, "77,104"), (16.5, "16.5"), (1234.56, "1,235"), (3.0, "3"), (None, "–")]
)
def test_counts_are_exact_where_they_are_whole(value: Any, shown: str) -> None:
    assert format_count(value) == shown


def test_names_are_joined_as_in_a_sentence() -> None:
    assert join_words(["a"]) == "a" and join_words([1, 2, 3]) == "1, 2 and 3"


def test_only_finite_numbers_are_known() -> None:
    assert finite_or_none(3) == 3.0 and finite_or_none(0.0) == 0.0
    for value in (True, None, "3", math.nan, math.inf, [1]):
        assert finite_or_none(value) is None


def test_an_unexpected_error_is_one_line_of_any_class() -> None:
    class PanicException(BaseException):
        """As those of Rust, which are no Exceptions."""

    assert error_lines(PanicException("Onig: over\n<state>\n")) == ["PanicException: Onig: over"]
    assert error_lines(ValueError()) == ["ValueError: "]
