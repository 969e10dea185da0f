"""Columns of answers: what differs is marked, many pieces are one drawing, numbers are in plain words."""

from __future__ import annotations

import math
from typing import Any

import pytest
from textual.app import App, ComposeResult

from mta_cli.tui.widgets.answers import (
    MAX_DIFF_WORDS,
    AnswerColumn,
    AnswerColumns,
    differing_spans,
    gold_summary,
    label_bars,
)
from tests.tui.driving import screen_text


class Wall(App[None]):
    """An app with nothing but columns."""

    def compose(self) -> ComposeResult:
        yield AnswerColumns()

    @property
    def answers(self) -> AnswerColumns:
        return self.query_one(AnswerColumns)


def detail(mode: str, **more: Any) -> dict[str, Any]:
    """What a comparison says of one column."""
    source = {"mode": mode, "bank": None if mode == "base" else "b", "version": 1, "anchors": ["ann"]}
    known = {
        "source": source,
        "step": mode,
        "tokens": 7,
        "seconds": 1.0,
        "ended": "end",
        "tokens_per_second": 7.0,
        "labels": {},
    }
    return {**known, **more}


def result(**columns: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """A comparison's result."""
    answers = {key.replace("at_", "@"): answer for key, (answer, _) in columns.items()}
    details = {key.replace("at_", "@"): about for key, (_, about) in columns.items()}
    return {"answers": {**answers, "adapted": answers.get("adapted")}, "details": {**details, "fused": None} | details}


@pytest.mark.parametrize(
    ("first", "other", "marked"),
    [
        ("the red house", "the red house", []),
        ("the red house", "the blue house", ["blue"]),
        ("the house", "the old red house", ["old red"]),
        ("", "all of it", ["all of it"]),
        ("one two three", "", []),
        ("one two", "two one", ["two"]),
        ("a  b\nc", "a b c", []),
    ],
)
def test_words_that_the_first_does_not_have_there_are_marked(first: str, other: str, marked: list[str]) -> None:
    found = [other[start:end] for start, end in differing_spans(first, other)]
    assert found == marked


def test_very_long_answers_are_not_compared() -> None:
    assert list(differing_spans("a " * (MAX_DIFF_WORDS + 1), "b " * 3)) == []


async def test_columns_stand_in_their_order_whoever_speaks_first() -> None:
    app = Wall()
    async with app.run_test(size=(100, 20)) as pilot:
        for key in ("@zoe", "adapted", "common", "base", "@ann", "fused"):
            app.answers.append_answer(key, key)
        await pilot.pause()
        assert app.answers.column_keys == ["base", "common", "fused", "adapted", "@zoe", "@ann"]
        assert [column.key for column in app.query(AnswerColumn)] == app.answers.column_keys


async def test_many_pieces_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    show = AnswerColumn.show_answer
    monkeypatch.setattr(AnswerColumn, "show_answer", lambda self, *rest: (drawn.append(self.key), show(self, *rest))[1])

    app = Wall()
    async with app.run_test() as pilot:
        for n in range(500):
            app.answers.append_answer("base", f"w{n} ")
        await pilot.pause()
        assert len(drawn) < 5 and app.answers.answer_of("base").endswith("w499 ")


async def test_numbers_are_told_in_plain_words_and_the_likeliest_gold_is_marked() -> None:
    gold = {"loglik": -1.25, "over": "token", "label": None, "metrics": {"rouge_1": 0.5, "rouge_l": 0.25}}
    label = {"loglik": -0.105, "over": "labels", "label": "b", "metrics": {"accuracy": 1.0}}
    score = {"loglik": -0.5, "over": "labels", "label": "3", "metrics": {"mae": 2.0}}

    app = Wall()
    async with app.run_test(size=(140, 20)) as pilot:
        app.answers.show_result(
            result(
                base=("one two", detail("base", gold=gold, ended="length")),
                fused=("one three", detail("fused", gold=label, ended="label", labels={"a": 1.0, "b": 2.0})),
                adapted=("", detail("adapted", gold=score, tokens=1)),
                at_bob=("one", detail("adapted")),
            )
        )
        await pilot.pause()
        shown = screen_text(app)  # type: ignore[arg-type]
        for words in (
            "7 tokens · 7/s · cut",
            "gold −1.250 nats per token",
            "rouge-1 .500",
            "rouge-l .250",
            "gold at 90 % (best)",
            "✓ right",
            "✗ off by 2",
            "1 token ·",
            "(an empty answer)",
            "bob · adapted",
            "b v1 · ann",
            "the model as it is",
        ):
            assert words in shown, words
        below = {column.key: str(column._metrics.visual) for column in app.query(AnswerColumn)}
        assert "gold" not in below["@bob"]


LABELS = {"go": -1.0, "skip": -1.0 - math.log(3), "wait": -50.0}


@pytest.mark.parametrize(
    ("answer", "gold", "marks", "tones"),
    [
        ("go", "go", ["✓ go", "· skip", "· wait"], ["good", "", ""]),
        ("skip", "go", ["◆ go", "✗ skip", "· wait"], ["", "bad", ""]),
        ("skip", None, ["· go", "▸ skip", "· wait"], ["", "", ""]),
    ],
)
def test_each_label_has_its_share_and_signs_say_what_colours_say(
    answer: str, gold: str | None, marks: list[str], tones: list[str]
) -> None:
    bars = label_bars(LABELS, answer, gold)
    assert [bar.label for bar in bars] == marks and [bar.tone for bar in bars] == tones
    assert [bar.value_text for bar in bars] == ["75 %", "25 %", "0 %"]
    assert bars[0].value == pytest.approx(0.75)


def test_what_personalising_did_to_the_gold_is_one_sentence() -> None:
    def known(key: str, share: float, over: str = "labels") -> dict[str, Any]:
        return detail(key, gold={"loglik": math.log(share), "over": over, "label": "go", "metrics": {}})

    shared = {"base": known("base", 0.2), "common": known("common", 0.54)}
    both = {**shared, "fused": None, "adapted": known("adapted", 0.15), "@bob": known("fused", 0.9)}
    assert gold_summary({"details": both}) == "common 54 % → adapted 15 %, −39 points"
    assert gold_summary({"details": {**shared, "adapted": None}}) == "base 20 % → common 54 %, +34 points"
    assert gold_summary({"details": {"base": known("base", 0.5), "adapted": None}}) == ""
    assert (
        gold_summary({"details": {"base": known("base", 0.5, "token"), "common": known("common", 0.6, "token")}}) == ""
    )


async def test_all_columns_wait_and_those_without_words_go_at_the_end() -> None:
    app = Wall()
    async with app.run_test(size=(100, 20)) as pilot:
        for key in ("base", "fused"):
            app.answers.append_answer(key, "")
        app.answers.show_waiting("loading the base")
        app.answers.append_answer("adapted", "")
        await pilot.pause()
        assert screen_text(app).count("loading the base … 0 s") == 3  # type: ignore[arg-type]
        app.answers.append_answer("base", "word")
        app.answers.select_column("fused")
        await pilot.pause()
        assert screen_text(app).count("loading the base … 0 s") == 2  # type: ignore[arg-type]
        app.screen.set_focus(None)
        app.answers.stop_waiting()
        await pilot.pause()
        assert app.answers.column_keys == ["base"] and app.answers.selected_key is None
        assert "…" not in screen_text(app)  # type: ignore[arg-type]


async def test_a_column_is_chosen_by_key_and_by_click_and_none_is_left_after_clearing() -> None:
    app = Wall()
    async with app.run_test(size=(100, 20)) as pilot:
        app.answers.action_step_column(1)
        assert app.answers.selected_key is None
        app.answers.show_result(result(base=("one", detail("base")), fused=("two", detail("fused"))))
        await pilot.pause()
        await pilot.click("AnswerColumn:last-of-type")
        assert app.answers.selected_key == "fused"
        await pilot.press("left")
        assert app.answers.selected_key == "base"
        await pilot.press("left")
        assert app.answers.selected_key == "fused"
        app.answers.clear_columns()
        await pilot.pause()
        assert app.answers.selected_key is None and app.answers.column_keys == [] and not app.query(AnswerColumn)


async def test_five_columns_are_scrolled_where_they_do_not_fit() -> None:
    app = Wall()
    async with app.run_test(size=(80, 20)) as pilot:
        for key in ("base", "fused", "adapted", "@ann", "@bob"):
            app.answers.append_answer(key, "words")
        await pilot.pause()
        assert {column.region.width for column in app.query(AnswerColumn)} == {19}
        await pilot.resize_terminal(150, 20)
        await pilot.pause()
        assert {column.region.width for column in app.query(AnswerColumn)} == {30}


async def test_marked_words_are_seen_without_colours_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    app = Wall()
    async with app.run_test(size=(80, 20)) as pilot:
        app.answers.show_result(result(base=("one two", detail("base")), fused=("one three", detail("fused"))))
        await pilot.pause()
        strips = app.screen._compositor.render_strips()
        drawn = [segment for strip in strips for segment in strip]
        marked = [segment.text for segment in drawn if segment.style and segment.style.underline]
        assert [text for text in marked if text.strip()] == ["three"]
