"""The words of the pane: whose bars are shown, numbers and times as people write them, and who may not be an anchor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mta_cli.pipeline.users.detail import AnchorMatch, MethodResult, Results, UserDetail
from mta_cli.tui.text import format_short
from mta_cli.tui.widgets.user_detail import (
    MAX_ANCHORS_SHOWN,
    format_time,
    history_lines,
    recipe_parts,
    result_bars,
    run_lines,
    shown_losses,
    user_summary,
)
from store.records import Item, Recipe, Run, Stack, User

ANN = UserDetail(User(1, "ann", True, "2020"), None, (), "new", None, (), None, None, None, (), None, ())
STACK = Stack(1, "free", 1, "d", 5, 10, 2.0, 1.0, b"", 560)


def near(
    place: int, similarity: float | None = 0.5, weight: float | None = None, *, stale: bool = False
) -> AnchorMatch:
    return AnchorMatch(place, f"a{place}", stale, similarity, weight, place)


def recipe(method: str = "evidence") -> Recipe:
    return Recipe(1, "free", 1, method, (), 24)


def test_a_recipe_is_its_anchors_by_weight_and_the_rest() -> None:
    user = replace(ANN, anchors=(near(0, 0.9, 0.1), near(1, 0.8), near(2, None, 0.3)), recipe=recipe())
    parts = recipe_parts(replace(user, task_adapter_share=0.6))
    assert [(part.sign, part.name, part.weight_text) for part in parts] == [
        ("C", "a2", ".30"),
        ("A", "a0", ".10"),
        ("░", "task adapter", ".60"),
    ]
    assert [part.number for part in recipe_parts(user)] == [2, 0]


def test_without_a_recipe_the_most_similar_anchors_are_named() -> None:
    user = replace(ANN, anchors=(*map(near, range(30)), near(99, None)))
    parts = recipe_parts(user)
    assert [part.number for part in parts] == list(range(MAX_ANCHORS_SHOWN))
    assert {(part.weight, part.weight_text) for part in parts} == {(None, ".50")} and recipe_parts(ANN) == []


def test_a_stale_anchor_is_told() -> None:
    forgotten = AnchorMatch(3, "(forgotten #3)", True, 0.5, 0.5, 1)
    parts = recipe_parts(replace(ANN, anchors=(near(1, stale=True), forgotten)))
    assert [part.name for part in parts] == ["a1 (stale)", "(forgotten #3)"]


def test_the_curve_goes_from_the_loss_before_to_that_of_the_saved_stack() -> None:
    trained = replace(ANN, losses=(3.0, 2.5), stack=replace(STACK, steps=2))
    assert shown_losses(trained) == (STACK.loss_before, 3.0, 2.5, STACK.loss_after)
    assert shown_losses(replace(trained, stack=replace(STACK, steps=3))) == (3.0, 2.5)
    assert shown_losses(ANN) == ()


def test_somebody_without_items_or_consent_is_described() -> None:
    assert user_summary(ANN).plain == "ann\nno items yet"
    shy = replace(ANN, user=replace(ANN.user, can_anchor=False))
    assert user_summary(shy).plain.splitlines()[0] == "ann  may not be an anchor"


def test_without_a_bank_the_pane_says_how_to_make_one() -> None:
    user = replace(ANN, task="free", task_counts=(("free", 1, 2), ("other", 3, 0)))
    assert user_summary(user).plain.splitlines()[1:] == [
        "task free: new, 1 item, 2 held-out queries; also other (3)",
        "no bank for this task yet: 3 and n build one",
    ]


def test_what_adapting_did_is_told_in_words_with_its_unit() -> None:
    for after, told in (
        (1.5, "lowered the loss on held-out queries by 25.0 % (much better): 2.000 → 1.500 nats"),
        (1.988, "lowered the loss on held-out queries by 0.6 % (no different): 2.000 → 1.988 nats"),
        (2.25, "raised the loss on held-out queries by 12.5 % (worse): 2.000 → 2.250 nats"),
        (2.0004, "left the loss on held-out queries as it was: 2.000 → 2.000 nats"),
    ):
        user = replace(ANN, stack=replace(STACK, heldout_before=2.0, heldout_after=after))
        assert user_summary(user).plain.splitlines()[-1] == f"adapting {told}"
    assert "held-out" not in user_summary(replace(ANN, stack=STACK)).plain


def test_each_method_has_its_number_and_how_many_answers_it_rests_on() -> None:
    (bar,) = result_bars(Results(3, "mae", (MethodResult("base", 1.25, 8, None),)))
    assert (bar.label, bar.value, bar.value_text) == ("base", 1.25, "1.25 of 8") and result_bars(None) == []


def test_a_failed_run_says_why_on_one_line() -> None:
    run = Run(1, "user adapt", "ann", "failed", {}, None, "it\nbroke\x1b[0m", "2026-01-02T03:04:05+00:00", None)
    lines = run_lines([run, replace(run, status="interrupted"), *[replace(run, status="done")] * 20]).plain.splitlines()
    assert lines[:2] == [
        "2026-01-02 03:04  user adapt  failed: it broke[0m",
        "2026-01-02 03:04  user adapt  interrupted",
    ]
    assert len(lines) == 8


def test_history_is_a_line_an_item_and_says_what_is_left() -> None:
    item = Item(1, 1, "k", "free", "a\nb " + "x" * 500, "y", "2020-01-02")
    assert history_lines([item], 1).plain.startswith("2020-01-02  a b xxx") and "…" in history_lines([item], 1).plain
    assert (
        history_lines([replace(item, input="a", time=None)] * 2, 1_234).plain
        == "a → y\na → y\n1,232 older; o shows more"
    )
    assert history_lines([], 0).plain == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, ".50"),
        (-0.25, "−.25"),
        (1.0, "1.00"),
        (10.04, "10.04"),
        (0.0, ".00"),
        (None, "–"),
        (math.nan, "–"),
        (0.999, "1.00"),
        (-2.0, "−2.00"),
    ],
)
def test_numbers_have_two_decimals(value: float | None, shown: str) -> None:
    assert format_short(value) == shown


def test_times_are_short() -> None:
    assert (
        format_time("2020-01-02T03:04:05Z") == "2020-01-02 03:04"
        and format_time("2020") == "2020"
        and format_time(None) == format_time("") == "–"
    )
    assert format_time("\x1b[31m" + "x" * 99) == "[31m" + "x" * 12
