"""Differences, designs and settings in words."""

from __future__ import annotations

import math

from mta_cli.lab.report import wording
from tests.pipeline.documents import document


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
    assert wording.describe_settings({"steps": 10, "epochs": 0}) == "steps 10, epochs 0"
    assert wording.describe_settings({"steps": 10, "epochs": 2}) == "epochs 2"
    assert wording.describe_settings(None) == wording.describe_settings({}) == ""
