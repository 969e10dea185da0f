"""Numbers and designs in words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mta_cli.lab.report import wording
from tests.pipeline.documents import document


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
    assert wording.format_number(value) == shown and wording.format_number(value, signed=True) == signed


def test_an_interval_is_shown_as_far_as_it_is_known() -> None:
    assert wording.format_interval({"value": 0.5, "low": 0.4, "high": 0.6}) == "0.500 [0.400, 0.600]"
    assert wording.format_interval({"value": 0.5, "low": None, "high": 0.6}) == "0.500"
    assert wording.format_interval({"value": None, "low": 0.4, "high": 0.6}) == wording.format_interval(None) == "–"


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
    assert wording.format_bytes(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0.00"), (0.004, "0.004"), (0.5, "0.50"), (4.26, "4.26"), (20.44, "20.4"), (1234.5, "1,234")],
)
def test_seconds_have_the_decimals_that_matter(value: float, shown: str) -> None:
    assert wording.format_seconds_number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0004, "< 0.001"), (0.001, "0.001"), (0.0496, "0.050"), (1, "1.000"), (None, "–")]
)
def test_small_chances_are_not_made_smaller_than_they_are(value: Any, shown: str) -> None:
    assert wording.format_p_value(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(77104, "77,104"), (16.5, "16.5"), (1234.56, "1,235"), (3.0, "3"), (None, "–")]
)
def test_counts_are_exact_where_they_are_whole(value: Any, shown: str) -> None:
    assert wording.format_count(value) == shown


def test_a_statement_says_who_is_compared() -> None:
    row = {"a": "mta", "b": "base", "metric": "mae", "low": 0.1, "high": 0.2}
    assert wording.describe_difference(row) == "worse than base"
    assert wording.describe_difference({**row, "low": -0.1}) == "not shown"


def test_a_difference_that_holms_correction_takes_back_is_exploratory() -> None:
    row = {"b": "base", "metric": "mae", "low": 0.1, "high": 0.3, "p": 0.01, "p_holm": 0.05}
    assert wording.describe_difference(row) == "worse than base, p < .05 before Holm's correction but not after"
    assert wording.describe_verdict(row) == "worse*"
    assert wording.describe_verdict({**row, "p_holm": 0.049}) == "worse"
    assert wording.describe_verdict({**row, "p": 0.06}) == "not shown"


def test_names_are_joined_as_in_a_sentence() -> None:
    assert wording.join_words(["a"]) == "a" and wording.join_words([1, 2, 3]) == "1, 2 and 3"


def test_a_sentence_that_lacks_something_is_left_out() -> None:
    said = wording.describe_design({"users": 1, "queries": 2, "folds": 1, "shots": 1})
    assert said == "1 user with 2 held-out queries. 1 shot for each user's own model."


def test_power_needs_a_number() -> None:
    assert wording.describe_power(document(power={"metric": "mae", "detectable": 0.0421})).endswith(
        "in MAE that this design can detect is 0.042."
    )
    for nothing in (None, {}, {"detectable": math.inf}, {"detectable": 0.0}):
        assert wording.describe_power(document(power=nothing)) == ""


def test_settings_that_differ_by_fold_are_told_by_fold() -> None:
    assert wording.describe_settings({"steps": 10, "rank": 2}) == "steps 10, rank 2"
    assert wording.describe_settings([{"steps": 10}, {"steps": 20}]) == "fold 1: steps 10; fold 2: steps 20"
    assert (
        wording.describe_settings({"steps": 10, "learning_rate": 0.0, "epochs": 0})
        == "steps 10, learning_rate by the task, epochs 0"
    )
    assert wording.describe_settings({"steps": 10, "epochs": 2}) == "epochs 2"
    assert wording.describe_settings(None) == wording.describe_settings({}) == ""
