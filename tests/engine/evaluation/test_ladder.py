"""The ladder: its steps, what is compared with what, and when a step is worth it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mta_cli.engine.evaluation.ladder import (
    ADAPTED,
    ANOTHERS,
    BASE,
    BASE_EXAMPLES,
    COMMON,
    COMMON_MEMORY,
    FUSED,
    NO_MODEL,
    STEP_NAMES,
    compared_pairs,
    judge_ladder,
    ladder_steps,
)
from mta_cli.engine.evaluation.user_sums import UserSums, sum_by_user
from mta_cli.engine.evaluation.whose import WhoseSums

LABELS = ("a", "b")


def sums(logliks: Mapping[int, list[float]]) -> UserSums:
    """Answers of users with these likelihoods, one question each."""
    users = [user for user, own in logliks.items() for _ in own]
    flat = [value for own in logliks.values() for value in own]
    return sum_by_user("accuracy", LABELS, users, ["a"] * len(flat), ["a"] * len(flat), flat)


def shifted(own: UserSums, by: float) -> UserSums:
    """The same answers, likelier by so many nats."""
    other = own.sums.copy()
    other[:, 1] += by * other[:, 0]
    return replace(own, sums=other)


def people(count: int = 24, seed: int = 0) -> UserSums:
    rng = np.random.default_rng(seed)
    return sums({user: (-1 - rng.random(3)).tolist() for user in range(count)})


def verdicts(found: Mapping[str, Any]) -> dict[str, str]:
    return {row["adds"]: row["verdict"] for row in found["comparisons"]}


def test_the_steps_of_a_task_with_memory_and_of_one_without() -> None:
    assert tuple(step.name for step in ladder_steps(memory=True)) == STEP_NAMES
    texts = ladder_steps(memory=False)
    assert [step.name for step in texts] == [NO_MODEL, BASE, BASE_EXAMPLES, COMMON, FUSED, ADAPTED, ANOTHERS]
    assert not any(step.memory for step in texts)
    plain = ladder_steps(memory=True, examples=False)
    assert BASE_EXAMPLES not in [step.name for step in plain] and not any(step.examples for step in plain)
    fused = ladder_steps(memory=True, weights=["fused"])
    assert [step.name for step in fused][-2:] == [FUSED, ANOTHERS] and fused[-1].weights == "fused"
    nobody = ladder_steps(memory=True, weights=[])
    assert [step.name for step in nobody][-1] == COMMON_MEMORY


def test_every_step_above_the_common_model_has_the_same_help() -> None:
    for memory in (True, False):
        above = [step for step in ladder_steps(memory=memory) if step.weights in ("fused", "adapted")]
        assert {(step.memory, step.examples) for step in above} == {(memory, True)}


def test_each_step_is_compared_with_the_one_below_it_and_the_personal_model_as_a_whole() -> None:
    assert [(one.step, one.below) for one in compared_pairs(STEP_NAMES)] == [
        (BASE_EXAMPLES, BASE),
        (COMMON, BASE_EXAMPLES),
        (COMMON_MEMORY, COMMON),
        (FUSED, COMMON_MEMORY),
        (ADAPTED, FUSED),
        (ADAPTED, COMMON_MEMORY),
    ]
    few = compared_pairs([COMMON, ADAPTED, ANOTHERS, NO_MODEL])
    assert [(one.step, one.below, one.adds) for one in few] == [(ADAPTED, COMMON, "a personal model on top")]
    assert compared_pairs([BASE, ANOTHERS]) == []


def test_a_step_that_is_ahead_is_worth_it_and_noise_is_not() -> None:
    base, rng = people(), np.random.default_rng(1)
    noisy = sums({user: (own + rng.normal(0, 0.3, 3)).tolist() for user, own in enumerate(base.sums[:, 1] / 3)})
    found = judge_ladder(
        {BASE: base, BASE_EXAMPLES: shifted(base, 0.2), COMMON: noisy}, "accuracy", unit="users", seed=0
    )
    assert verdicts(found) == {"own examples in the prompt": "worth it", "the common model": "worse"}
    same = judge_ladder({BASE: base, BASE_EXAMPLES: noisy}, "accuracy", unit="users", seed=0)
    assert same["comparisons"][0]["verdict"] in ("not shown", "worse")
    assert found["units"] == 24 and found["questions"] == 72 and found["comparisons"][0]["detectable"] >= 0


def test_a_personal_model_must_be_ahead_of_another_users() -> None:
    base = people()
    both = {COMMON: base, ADAPTED: shifted(base, 0.1)}
    own = judge_ladder({**both, ANOTHERS: base}, "accuracy", unit="users", seed=0)
    assert verdicts(own) == {"a personal model on top": "worth it"} and own["control"]["verdict"] == "worth it"
    anybody = judge_ladder({**both, ANOTHERS: shifted(base, 0.1)}, "accuracy", unit="users", seed=0)
    (row,) = anybody["comparisons"]
    assert (row["verdict"], row["why"]) == ("not shown", ANOTHERS), "anybody's model does as well"


def test_a_personal_model_must_be_ahead_of_the_mean_of_others_where_these_were_asked() -> None:
    base = people()

    def asked(lead: float) -> UserSums:
        rows = np.column_stack([np.full(24, 3.0), np.ones(24), np.full(24, 0.4), np.full(24, 3 * lead)])
        return replace(shifted(base, 0.1), whose=WhoseSums(base.users, rows))

    both = {COMMON: base, ANOTHERS: base}
    own = judge_ladder({**both, ADAPTED: asked(0.05)}, "accuracy", unit="users", seed=0)
    assert verdicts(own) == {"a personal model on top": "worth it"} and own["others"]["value"] == pytest.approx(0.05)
    anybody = judge_ladder({**both, ADAPTED: asked(0.0)}, "accuracy", unit="users", seed=0)
    (row,) = anybody["comparisons"]
    assert (row["verdict"], row["why"]) == ("not shown", "others") and anybody["control"]["verdict"] == "worth it"


def test_no_model_is_compared_with_the_whole_and_a_text_has_no_likelihood_without_one() -> None:
    base = people()
    found = judge_ladder(
        {NO_MODEL: shifted(base, 0.5), BASE: base, COMMON: shifted(base, 0.1)}, "accuracy", unit="users", seed=0
    )
    assert found["no_model"]["verdict"] == "worse" and found["no_model"]["step"] == COMMON
    silent = UserSums(base.metric, base.labels, base.users, base.golds, base.sums, has_loglik=False)
    found = judge_ladder({NO_MODEL: silent, BASE: base, COMMON: shifted(base, 0.1)}, "accuracy", unit="users", seed=0)
    assert found["no_model"] is None and found["steps"][0] == {"step": NO_MODEL, "gold_loglik": None, "metric": 1.0}


@pytest.mark.parametrize(
    ("unit", "count", "said"), [("users", 7, "too few"), ("users", 8, ""), ("questions", 9, "too few")]
)
def test_few_units_show_nothing(unit: str, count: int, said: str) -> None:
    base = people(count)
    found = judge_ladder({BASE: base, BASE_EXAMPLES: shifted(base, 0.3)}, "accuracy", unit=unit, seed=0)
    assert found["comparisons"][0]["why"] == said
    assert (found["comparisons"][0]["verdict"] == "worth it") == (not said)


def test_eight_users_who_all_gain_are_enough_for_all_steps() -> None:
    base = people(8)
    grown = {name: shifted(base, 0.1 * place) for place, name in enumerate(STEP_NAMES[1:7])}
    found = judge_ladder({**grown, ANOTHERS: base}, "accuracy", unit="users", seed=0)
    assert set(verdicts(found).values()) == {"worth it"} and len(found["comparisons"]) == 6


def test_reports_and_steps_mean_the_same_by_personal() -> None:
    """Reports do not import the engine, so that the window opens quickly."""
    from mta_cli.engine.evaluation import ladder
    from mta_cli.pipeline.evaluation import ladder_text

    assert ladder_text.PERSONAL_STEPS == ladder.PERSONAL_STEPS
