"""A bank's ladder: its steps, its users, its stored document, and the warning that no model is as good."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mta_cli.engine.memory import knn
from mta_cli.engine.memory.knn import MixtureWeights, NeighbourIndex
from mta_cli.engine.memory.label_prior import label_rates
from mta_cli.engine.text.tasks import Task
from mta_cli.events import JobProgress
from mta_cli.pipeline.bank import memory_weights
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.bank.ladder import LADDER_KEY, bank_ladder_warning, compute_label_ladder, take_round_robin
from mta_cli.pipeline.bank.memory_weights import LeaveOneOutCase
from store.records import Bank, Item, NewItem
from store.registry import Registry
from tests.pipeline.town import TASK, bank_request, built, finish, notes

EMPTY = Bank(1, "b", 1, "", TASK.name, "", "", None, "ready", 0, {}, 0, 0.0, "")


@pytest.fixture(autouse=True)
def few_guessed_items() -> None:
    """As many items are guessed here as in the program; other tests guess fewer."""


def bank_of(reg: Registry, task: str = TASK.name) -> Bank:
    bank = reg.banks.latest_ready_bank(task)
    assert bank is not None
    return bank


def values(ladder: dict[str, Any]) -> dict[str, float]:
    return {one["step"]: one["gold_loglik"] for one in ladder["steps"]}


def test_a_build_ends_with_the_ladder_of_its_users_and_keeps_it(peopled: Registry) -> None:
    ladder = built(peopled)["ladder"]
    assert list(values(ladder)) == ["no-model", "base", "base+examples", "common", "common+memory"]
    assert (ladder["unit"], ladder["units"], ladder["questions"]) == ("users", 9, 90)
    assert ladder["metric"] == "accuracy" and not ladder["seen"] and ladder["shots"] == 5
    assert {(row["step"], row["below"]) for row in ladder["comparisons"]} == {
        ("base+examples", "base"),
        ("common", "base+examples"),
        ("common+memory", "common"),
    }
    assert ladder["no_model"]["step"] == "common+memory" and ladder["control"] is None
    again, seen = finish(build_bank(peopled, bank_request()))
    assert again["ladder"] == ladder and not any(isinstance(event, JobProgress) for event in seen)
    other, seen = finish(build_bank(peopled, bank_request(anchors=2)))
    assert other["version"] == 2 and other["ladder"] == ladder, "other anchors change none of its steps"
    assert not any("the memory" in text for text in notes(seen))


@pytest.mark.parametrize(
    ("options", "purpose"), [({"held_out_weights": False}, ""), ({"task_adapter": False}, ""), ({}, "eval")]
)
def test_no_ladder_where_the_adapter_has_seen_all_users_and_of_evaluations(
    peopled: Registry, options: dict[str, Any], purpose: str
) -> None:
    result, _ = finish(build_bank(peopled, replace(bank_request(**options), purpose=purpose)))
    assert result["memory_weights"] is not None and result["ladder"] is None


def test_without_items_in_prompts_no_step_adds_them(peopled: Registry) -> None:
    request = bank_request()
    result, _ = finish(build_bank(peopled, replace(request, prompt=replace(request.prompt, history_items=0))))
    assert list(values(result["ladder"])) == ["no-model", "base", "common", "common+memory"]


def test_the_memorys_step_is_weighed_on_other_users_than_it_answers(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = list[set[int]]()

    def model_alone(*given: Any) -> MixtureWeights:
        fitted.append(set(given[3].tolist()))
        return MixtureWeights.from_parts(model=float(len(fitted) != 1), memory=float(len(fitted) == 1))

    monkeypatch.setattr(knn, "fit_mixture_weights", model_alone)
    result = built(peopled)
    assert len(fitted) == 3 and fitted[0] == fitted[1] | fitted[2] and not fitted[1] & fitted[2]
    found = values(result["ladder"])
    assert found["common+memory"] == pytest.approx(found["common"]), "by the weights of the halves"
    assert result["memory_weights"] == {"model": 0.0, "memory": 1.0}, "and a bank answers by those of all"


@pytest.mark.parametrize("asked", [3, 0])
def test_texts_are_scored_on_held_out_queries_of_the_banks_users(peopled: Registry, asked: int) -> None:
    for n in range(9):
        user = peopled.users.get(f"user{n}").id
        items = [NewItem(f"w{k}", "words", f"line {k} of {n}", f"words of {n}") for k in range(6)]
        peopled.items.append_items(user, items)
        queries = [NewItem(f"x{k}", "words", f"question {k} of {n}", f"words of {n}") for k in range(asked)]
        peopled.items.append_queries(user, queries)
    task: Task = replace(TASK, name="words", kind="text", labels=(), metric="rouge")
    ladder = finish(build_bank(peopled, replace(bank_request(), task=task)))[0]["ladder"]
    assert (ladder is None) == (asked == 0)
    if ladder is not None:
        assert list(values(ladder)) == ["base", "base+examples", "common"]
        assert (ladder["units"], ladder["questions"], ladder["metric"]) == (9, 27, "gold_loglik")
        assert ladder["seen"] and ladder["no_model"] is None and bank_ladder_warning(bank_of(peopled, "words")) is None
        assert values(ladder)["common"] > values(ladder)["base+examples"], "it has learned from these users"


def test_a_long_ladder_is_cut_evenly_over_users(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_round_robin([[1], [10, 11, 12], [], [20, 21, 22]], 5) == [1, 10, 20, 11, 21]
    monkeypatch.setattr(memory_weights, "MAX_LADDER_CASES", 18)
    asked, judge = list[int](), memory_weights.compute_label_ladder

    def judged(*given: Any) -> dict[str, Any]:
        asked.extend(one.item.user_id for one in given[1])
        return judge(*given)

    monkeypatch.setattr(memory_weights, "compute_label_ladder", judged)
    assert built(peopled)["ladder"]["questions"] == 18 and set(Counter(asked).values()) == {2}


def cases(count: int) -> tuple[list[LeaveOneOutCase], NeighbourIndex]:
    """One item of each user, whose two others have the same label; labels alternate."""
    labels = np.arange(3 * count) // 3 % 2
    items = [Item(n, n // 3, "k", "t", "in", TASK.labels[label], None) for n, label in enumerate(labels)]
    index = NeighbourIndex(
        np.ones((3 * count, 2), np.float32), labels, np.arange(3 * count) // 3, np.array(label_rates((), TASK.labels))
    )
    return [LeaveOneOutCase(items[n], tuple(items[n + 1 : n + 3])) for n in range(0, 3 * count, 3)], index


def favouring(golds: list[int], nats: float) -> npt.NDArray[np.float64]:
    return nats * np.eye(len(TASK.labels))[golds]


@pytest.mark.parametrize(
    ("nats", "says"), [(9.0, None), (0.0, "worse than answers without a model"), (1.0, "than answers without a model")]
)
def test_a_bank_that_does_not_beat_no_model_says_so(nats: float, says: str | None) -> None:
    asked, index = cases(24)
    golds = [n % 2 for n in range(24)]
    scores = {"common": favouring(golds, 0.5), "common+memory": favouring(golds, nats)}
    ladder = compute_label_ladder(TASK, asked, index, scores, 0)
    expected = -np.log1p((len(TASK.labels) - 1) * np.exp(-nats))
    assert values(ladder)["common+memory"] == pytest.approx(expected)
    rate = 1 / len(TASK.labels)
    assert values(ladder)["no-model"] == pytest.approx(np.log((2 + 8 * rate) / (2 + 8))), "of a user's own two answers"
    bank = replace(EMPTY, config={LADDER_KEY: ladder})
    note = bank_ladder_warning(bank)
    assert (note is None) == (says is None) and (says is None or says in str(note))
    assert bank_ladder_warning(EMPTY) is None


def test_few_users_are_judged_by_their_questions() -> None:
    asked, index = cases(7)
    ladder = compute_label_ladder(TASK, asked, index, {"common": favouring([n % 2 for n in range(7)], 1.0)}, 0)
    assert (ladder["unit"], ladder["units"]) == ("questions", 7)
