"""Guesses: which column is what, by its name and by what it holds, and what kind of task the outputs make."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mta_cli.pipeline.data.column_mapping import ColumnMapping
from mta_cli.pipeline.data.guess_columns import guess_columns, guess_kind

WORDS = ["salt", "ferry", "lantern", "harbour", "quiet", "engine", "tide", "letters", "orchard", "signal"]


def text(seed: int, words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}"


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Thirty rows; a column is a function of the row's number."""
    return [{name: make(number) for name, make in columns.items()} for number in range(30)]


def person(number: int) -> str:
    return ("ann", "bob", "cy")[number % 3]


CASES = {
    "films": (
        rows(
            person=person,
            film=lambda n: text(n, 2),
            about=lambda n: text(n + 99, 5) if n % 4 else "",
            review=lambda n: text(n + 200, 9),
            stars=lambda n: n % 5 + 1,
        ),
        ColumnMapping("person", "{film}. {about}. {review}", "stars"),
    ),
    "ids and unix times": (
        rows(userId=lambda n: n % 4, movieId=lambda n: 100 + n, rating=lambda n: n % 9 / 2, timestamp=lambda n: 10**9),
        ColumnMapping("userId", "movieId", "rating", "timestamp"),
    ),
    "an id is no input": (
        rows(Id=lambda n: f"r{n:03}", user=person, review=lambda n: text(n, 9), rating=lambda n: n % 5 + 1),
        ColumnMapping("user", "review", "rating"),
    ),
    "questions and answers": (
        rows(
            created_at=lambda n: f"2026-01-{n + 1:02}",
            sender=person,
            prompt=lambda n: text(n, 8),
            topic=lambda n: text(n, 2),
            reply=lambda n: text(n + 50, 12),
        ),
        ColumnMapping("sender", "prompt", "reply", "created_at"),
    ),
    "names that say nothing": (
        rows(c1=person, c2=lambda n: text(n, 9), c3=lambda n: ("yes", "no")[n % 2], c4=lambda n: f"2026-03-{n + 1:02}"),
        ColumnMapping("c1", "c2", "c3", "c4"),
    ),
    "one user's labels": (
        rows(text=lambda n: text(n, 9), label=lambda n: ("go", "skip")[n % 2], url=lambda n: f"https://x/{n}"),
        ColumnMapping(None, "text", "label"),
    ),
    "a date comes before a year": (
        rows(
            published=lambda n: str(1980 + n),
            reader=person,
            book=lambda n: text(n, 4),
            read=lambda n: f"2026/3/{n + 1}",
            rating=lambda n: n % 5 + 1,
        ),
        ColumnMapping("reader", "book", "rating", "read"),
    ),
    "a year is no time": (
        rows(user=person, title=lambda n: text(n, 3), year=lambda n: str(1980 + n), mood=lambda n: "ab"[n % 2]),
        ColumnMapping("user", "title", "mood"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_columns(name: str) -> None:
    sample, expected = CASES[name]
    guess = guess_columns(sample)
    assert guess.columns == expected
    assert list(guess.examples) == list(sample[0])


def test_nothing_can_be_guessed_from_nothing() -> None:
    guess = guess_columns([])
    assert guess.columns == ColumnMapping()
    assert guess_columns([{"a": None}, {"a": ""}]).examples == {"a": ""}


@pytest.mark.parametrize(
    ("outputs", "kind", "labels"),
    [
        (["1", "3", "5", " 4 ", "4.0"] * 3, "score", ("1", "2", "3", "4", "5")),
        (["2", "3", "4"], "score", ("1", "2", "3", "4", "5")),
        (["7", "9", "10"], "score", tuple(map(str, range(1, 11)))),
        (["0.5", "3", "4.5", "5"], "score", ("0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5")),
        (["0", "1", "2", "3"], "score", ("0", "1", "2", "3")),
        (["-1", "0", "1"], "score", ("-1", "0", "1")),
        (["go", "skip", "Anna"] * 4, "label", ("Anna", "go", "skip")),
        (["0", "1"] * 5, "label", ("0", "1")),
        ([f"{n / 10}" for n in range(60)], "score", tuple(f"{n / 2:g}" for n in range(13))),
        ([f"{n}" for n in range(101)] + ["n/a"], "score", tuple(str(n) for n in range(0, 101, 5))),
        (["0.12", "0.5", "0.93", "1", "0"], "score", tuple(f"{n / 20:g}" for n in range(21))),
        (["3.6666666666666665", "1.3333333333333333", "2"], "score", tuple(f"{n / 5:g}" for n in range(7, 19))),
        (["1", "2", "3", "5"] * 15 + ["99", "999", "-9"], "score", ("1", "2", "3", "4", "5")),
        (["0", "1", "2", "3"] * 10 + ["-1"], "score", ("0", "1", "2", "3")),
        (["0", "1", "2"] * 19 + ["-9", "-8", "98"], "score", ("0", "1", "2")),
        (["8", "9", "10"] * 20 + ["1"], "score", tuple(map(str, range(1, 11)))),
        (["0", "1", "2", "3"] * 20 + ["-1", "-2"], "score", tuple(map(str, range(-2, 4)))),
        (["0", "0.5", "1"] * 20 + ["-0.5"], "score", ("-0.5", "0", "0.5", "1")),
        ([f"{n}" for n in range(80, 101)] * 2 + ["20"], "score", tuple(str(n) for n in range(20, 101, 5))),
        ([f"{n}" for n in range(101)] + ["999"] * 3, "score", tuple(str(n) for n in range(0, 101, 5))),
        (["1", "2", "3"] * 10 + ["99"] * 3, "score", tuple(str(n) for n in range(0, 101, 5))),
        (["0", "0.0", "1"] * 4, "label", ("0", "0.0", "1")),
        ([f"{n}" for n in range(80, 101)], "score", tuple(str(n) for n in range(80, 101))),
        ([f"{n}000" for n in range(1000)], "score", tuple(f"{n}0000" if n else "0" for n in range(0, 101, 5))),
        (["1", "2", "3", "n/a", "none"] * 3, "label", ("1", "2", "3", "n/a", "none")),
        (["a", "b", "c", "d"], "text", ()),
        (["x" * 60, "y" * 60] * 9, "text", ()),
        (["same"] * 9, "text", ()),
        ([], "text", ()),
    ],
)
def test_kinds(outputs: list[str], kind: str, labels: tuple[str, ...]) -> None:
    guess = guess_kind(outputs)
    assert (guess.kind, guess.labels) == (kind, labels)
