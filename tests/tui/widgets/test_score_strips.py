"""Strips of marks: a sign for every kind of score, told apart without colour, folded where there are many."""

from __future__ import annotations

from typing import Any

import pytest

from mta_cli.tui.widgets.score_strips import ColumnStrip, StripMark, answer_mark, format_score, strip_lines


@pytest.mark.parametrize(
    ("metrics", "sign", "tone"),
    [
        ({"accuracy": 1.0}, "✓", "good"),
        ({"accuracy": 0.0}, "✗", "bad"),
        ({"mae": 0.0}, "✓", "good"),
        ({"mae": 0.5}, "1", "bad"),
        ({"mae": 3.0}, "3", "bad"),
        ({"mae": 40.0}, "9", "bad"),
        ({"rouge_1": 0.0, "rouge_l": 0.0}, "▁", "score"),
        ({"rouge_1": 0.5, "rouge_l": 0.1}, "▅", "score"),
        ({"rouge_1": 1.0, "rouge_l": 1.0}, "█", "score"),
        ({}, "–", "pending"),
    ],
)
def test_every_answer_has_a_sign(metrics: dict[str, float], sign: str, tone: str) -> None:
    assert answer_mark(metrics) == StripMark(sign, tone)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ({"metric": "accuracy", "value": 2 / 3, "answers": 6}, "4/6"),
        ({"metric": "rouge_1", "value": 0.2134, "answers": 6}, "ROUGE-1 .213"),
        ({"metric": "mae", "value": 1.25, "answers": 6}, "MAE 1.250"),
    ],
)
def test_the_score_is_the_evaluations(score: dict[str, Any], words: str) -> None:
    assert format_score(score) == words


def strips(*marks: str) -> dict[str, ColumnStrip]:
    """A strip for each string of signs."""
    return {
        f"c{n}": ColumnStrip(f"c{n}", [StripMark(sign, "good") for sign in signs], f"{n}/9")
        for n, signs in enumerate(marks)
    }


def test_marks_of_one_question_are_below_each_other_and_those_to_come_are_dots() -> None:
    lines = [line.plain for line in strip_lines(strips("✓✗", "✗✓"), 4, 40)]
    assert lines == ["c0 0/9  ✓ ✗ · ·", "c1 1/9  ✗ ✓ · ·"]


def test_many_marks_stand_closer_and_go_on_below() -> None:
    assert strip_lines(strips("✓" * 9), 9, 20)[0].plain == "c0 0/9  " + "✓" * 9
    folded = [line.plain for line in strip_lines(strips("✓" * 12 + "✗"), 13, 20)]
    assert folded == ["c0   0/9  " + "✓" * 10, " " * 10 + "✓✓✗"]


def test_a_name_from_the_store_is_cleaned_and_cut() -> None:
    (line,) = strip_lines({"@eve": ColumnStrip("eve\x1b[2J " + "x" * 40)}, 1, 40)
    assert line.plain.startswith("eve[2J xxxxxxxx…") and "\x1b" not in line.plain
