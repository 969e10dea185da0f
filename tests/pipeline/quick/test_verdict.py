"""The verdict from answers: who gained, by how much, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.pipeline.quick.verdict import (
    NOT_TOLD_APART,
    NOT_WORTH_IT,
    WORTH_IT,
    choose_examples,
    compare_models,
    decide,
)
from store.tables.predictions import Prediction

TAGS, SCORES, TITLES = BUILTIN_TASKS["lamp-2"], BUILTIN_TASKS["lamp-3"], BUILTIN_TASKS["lamp-5"]


def answers(method: str, given: list[str], golds: list[str], loglik: float = -1.0) -> list[Prediction]:
    """Two answers of each user in turn."""
    return [
        Prediction(n // 2, n, method, "", answer, gold, loglik, 1, 0.0)
        for n, (answer, gold) in enumerate(zip(given, golds, strict=True))
    ]


def compared(task: object, mine: list[str], common: list[str], plain: list[str], golds: list[str]) -> dict[str, object]:
    methods = {"fused": mine, "pooled": common, "majority": plain}
    found = {name: answers(name, given, golds) for name, given in methods.items()}
    found["majority"] = [replace(one, gold_loglik=None) for one in found["majority"]]
    return compare_models(task, found, "fused", "pooled", unit="users", seed=0)  # type: ignore[arg-type]


def test_right_answers_for_most_users_are_worth_it() -> None:
    golds = ["comedy", "action"] * 6
    found = compared(TAGS, golds, ["classic"] * 12, ["classic"] * 12, golds)
    assert (found["better"], found["same"], found["worse"]) == (6, 0, 0), "the fewest users that can be told apart"
    assert found["verdict"] == WORTH_IT and found["gain"]["value"] == 1.0  # type: ignore[index]


def test_a_lower_error_is_a_gain() -> None:
    golds = ["1", "5"] * 6
    found = compared(SCORES, golds, ["3"] * 12, ["3"] * 12, golds)
    assert found["gain"]["value"] == 2.0 and found["better"] == 6  # type: ignore[index]
    turned = compared(SCORES, ["3"] * 12, golds, ["3"] * 12, golds)
    assert turned["gain"]["high"] == -2.0 and turned["verdict"] == NOT_WORTH_IT and turned["worse"] == 6  # type: ignore[index]


def test_the_same_answers_are_not_told_apart() -> None:
    golds = ["comedy", "action"] * 8
    found = compared(TAGS, golds, golds, golds, golds)
    assert found["verdict"] == NOT_TOLD_APART and found["same"] == 8 and "more items per user" in str(found["why"])


def test_texts_are_judged_by_the_likelihood_of_the_users_own() -> None:
    golds = [f"title {n}" for n in range(12)]
    found = {"adapted": answers("adapted", golds, golds, -1.0), "pooled": answers("pooled", golds, golds, -2.0)}
    found["majority"] = [replace(one, gold_loglik=None) for one in answers("majority", ["no"] * 12, golds)]
    result = compare_models(TITLES, found, "adapted", "pooled", unit="users", seed=0)
    assert result["deciding_metric"] == "gold_loglik" and result["gain"]["value"] == pytest.approx(1.0)
    assert result["verdict"] == WORTH_IT and "gold_loglik" not in result["models"]["majority"]


def interval(low: float, high: float) -> dict[str, float]:
    return {"value": (low + high) / 2, "low": low, "high": high, "p": 0.01}


@pytest.mark.parametrize(
    ("gain", "over", "users", "verdict", "why"),
    [
        ((0.1, 0.2), (0.1, 0.2), 9, WORTH_IT, "and than what answers without a model"),
        ((0.1, 0.2), (-0.1, 0.2), 9, WORTH_IT, "not told apart from what answers without"),
        ((0.1, 0.2), (-0.2, -0.1), 9, NOT_WORTH_IT, "without a model"),
        ((0.1, 0.2), (-0.3, 0.1), 9, NOT_TOLD_APART, "but not than the answers without a model"),
        ((0.0, 0.2), (0.1, 0.2), 9, NOT_TOLD_APART, "use the common model"),
        ((-0.2, -0.1), (0.1, 0.2), 9, NOT_WORTH_IT, "the common model is better"),
        ((0.1, 0.2), (0.1, 0.2), 5, NOT_TOLD_APART, "too few measured users: 5"),
    ],
)
def test_the_verdict_follows_from_the_intervals(
    gain: tuple[float, float], over: tuple[float, float], users: int, verdict: str, why: str
) -> None:
    said, reason = decide(interval(*gain), interval(*over), users, "users", "common")
    assert said == verdict and why in reason


def test_an_interval_without_zero_is_not_enough_where_p_is_large() -> None:
    said, _ = decide({**interval(0.1, 0.2), "p": 0.06}, interval(0.1, 0.2), 6, "users", "common")
    assert said == NOT_TOLD_APART


def test_examples_are_of_the_largest_the_median_and_the_smallest_gain() -> None:
    golds = ["comedy", "action"] * 3
    found = {
        "fused": answers("fused", ["comedy", "action", "comedy", "classic", "classic", "classic"], golds),
        "pooled": answers("pooled", ["classic", "action", "comedy", "classic", "comedy", "action"], golds),
    }
    chosen = choose_examples(TAGS, found, "fused", "pooled", "users")
    assert [mine.user_id for mine, _ in chosen] == [0, 1, 2]
    assert [mine.query_id for mine, _ in chosen] == [0, 2, 4], "the first question on which the models differ"
    assert all(mine.query_id == common.query_id for mine, common in chosen)


def test_one_users_gain_is_over_their_questions() -> None:
    golds = ["comedy", "action"] * 6
    found = {
        method: [replace(one, user_id=7) for one in answers(method, given, golds)]
        for method, given in (("fused", golds), ("base", ["classic"] * 12), ("majority", ["comedy"] * 12))
    }
    result = compare_models(TAGS, found, "fused", "base", unit="questions", seed=0)
    assert (result["unit"], result["better"], result["verdict"]) == ("questions", 12, WORTH_IT)
    assert "untrained model" in result["why"] and result["gain"]["low"] == 1.0
    chosen = choose_examples(TAGS, found, "fused", "base", "questions")
    assert len(chosen) == 3 and all(mine.user_id == 7 and mine.query_id == other.query_id for mine, other in chosen)
    fewer = {method: own[:8] for method, own in found.items()}
    few = compare_models(TAGS, fewer, "fused", "base", unit="questions", seed=0)
    assert "too few measured questions: 8" in few["why"]
    one_of_several = compare_models(TAGS, found, "fused", "base", unit="users", seed=0)
    assert one_of_several["unit"] == "users" and one_of_several["verdict"] == NOT_TOLD_APART
