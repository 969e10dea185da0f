"""The words of the pane: whose bars are shown, numbers and times as people write them, and who may not be an anchor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mta_cli.pipeline.users.detail import AnchorMatch, MethodResult, Results, UserDetail
from mta_cli.tui.widgets.user_detail import (
    MAX_ANCHORS_SHOWN,
    anchor_bars,
    format_time,
    format_two_decimals,
    history_lines,
    result_bars,
    run_lines,
    user_summary,
)
from store.records import Item, Run, Stack, User

ANN = UserDetail(User(1, "ann", True, "2020"), None, (), "new", None, (), None, None, None, (), None, ())
STACK = Stack(1, "free", 1, "d", 5, 10, 2.0, 1.0, b"", 560)


def near(
    place: int, similarity: float | None = 0.5, weight: float | None = None, *, stale: bool = False
) -> AnchorMatch:
    return AnchorMatch(place, f"a{place}", stale, similarity, weight)


def test_the_nearest_are_shown_and_whoever_else_is_in_the_recipe() -> None:
    far = near(98, -0.1, 0.25)
    shown = anchor_bars([*map(near, range(30)), far, near(99, None), near(100, None, 0.5)])
    assert [bar.label for bar in shown] == [*(f"a{place}" for place in range(MAX_ANCHORS_SHOWN)), "a98", "a100"]
    assert [bar.strong for bar in shown[-3:]] == [False, True, True]
    assert [bar.value_text for bar in shown[-3:]] == [" .50       ", "−.10  w .25", "   –  w .50"]


def test_without_a_recipe_only_similarities_stand_there() -> None:
    assert [bar.value_text for bar in anchor_bars([near(1, 0.9), near(2, 1.0)])] == [" .90", "1.00"]
    assert anchor_bars([near(1, None)]) == [] == anchor_bars([])


def test_a_stale_anchor_is_told() -> None:
    forgotten = AnchorMatch(3, "(forgotten #3)", True, 0.5, 0.5)
    assert [bar.label for bar in anchor_bars([near(1, stale=True), forgotten])] == ["a1 (stale)", "(forgotten #3)"]


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


def test_quality_rises_when_the_loss_falls() -> None:
    for after, told in ((1.5, "+.500"), (2.25, "−.250")):
        user = replace(ANN, stack=replace(STACK, heldout_before=2.0, heldout_after=after))
        assert user_summary(user).plain.splitlines()[-1] == f"held-out loss 2.000 → {after:.3f} (quality {told})"
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
    assert format_two_decimals(value) == shown


def test_times_are_short() -> None:
    assert (
        format_time("2020-01-02T03:04:05Z") == "2020-01-02 03:04"
        and format_time("2020") == "2020"
        and format_time(None) == format_time("") == "–"
    )
    assert format_time("\x1b[31m" + "x" * 99) == "[31m" + "x" * 12
