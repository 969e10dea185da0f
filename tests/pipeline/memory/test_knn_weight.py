"""Weighing a bank's neighbours against its model: which items, what is kept, older banks and stopped builds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from mta_cli.engine.memory.knn import NeighbourKernel
from mta_cli.engine.text.tasks import Task
from mta_cli.events import Event, JobProgress
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.memory import knn_weight
from mta_cli.pipeline.memory.knn import NEIGHBOUR_WEIGHT_KEY, load_fitted_neighbours
from mta_cli.pipeline.memory.knn_weight import sample_cases
from store.records import Bank, Item, NewItem
from store.registry import Registry
from tests.pipeline.town import TASK, bank_request, built, finish, notes


def bank_of(reg: Registry) -> Bank:
    bank = reg.banks.latest_ready_bank(TASK.name)
    assert bank is not None
    return bank


def weighed(events: list[Event]) -> list[str]:
    return [text for text in notes(events) if "beside the model" in text]


def test_a_build_says_and_keeps_how_much_neighbours_count(peopled: Registry) -> None:
    result, seen = finish(build_bank(peopled, bank_request()))
    share = bank_of(peopled).config[NEIGHBOUR_WEIGHT_KEY]
    assert share > 0 and result[NEIGHBOUR_WEIGHT_KEY] == share and f"{share:.2f} times" in weighed(seen)[0]
    found = load_fitted_neighbours(peopled, bank_of(peopled), TASK, lambda texts: pytest.fail("nothing is embedded"))
    assert found is not None and found.kernel == NeighbourKernel(**(bank_of(peopled).kernel or {}), beside=share)


def test_an_older_bank_is_weighed_when_it_is_built_again(peopled: Registry) -> None:
    first, bank = built(peopled), bank_of(peopled)
    peopled.banks.set_bank_config(
        bank.id, {key: value for key, value in bank.config.items() if key != NEIGHBOUR_WEIGHT_KEY}
    )
    before = load_fitted_neighbours(peopled, bank_of(peopled), TASK, lambda texts: pytest.fail("nothing is embedded"))
    assert before is not None and before.kernel.beside == 1.0
    again, seen = finish(build_bank(peopled, bank_request()))
    assert again == first and weighed(seen)
    assert not [event for event in seen if isinstance(event, JobProgress) and event.loss is not None], (
        "nothing is trained"
    )
    assert not weighed(finish(build_bank(peopled, bank_request()))[1]), "once is enough"


def test_a_build_stopped_meanwhile_ends_as_an_unbroken_one(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_weight, "ITEMS_PER_STEP", 16)
    job = build_bank(peopled, bank_request())
    assert any(isinstance(event, JobProgress) and event.label == TASK.name and event.done == 32 for event in job)
    job.close()
    (bank,) = peopled.banks.all()
    assert bank.status == "building" and NEIGHBOUR_WEIGHT_KEY not in bank.config
    stopped = finish(build_bank(peopled, bank_request()))[0]
    whole = finish(build_bank(peopled, replace(bank_request(), name="whole")))[0]
    assert stopped[NEIGHBOUR_WEIGHT_KEY] == whole[NEIGHBOUR_WEIGHT_KEY] and bank_of(peopled).status == "ready"


def test_nothing_is_weighed_for_a_task_of_texts(peopled: Registry) -> None:
    result, seen = finish(build_bank(peopled, replace(bank_request(), task=texts(peopled))))
    assert result[NEIGHBOUR_WEIGHT_KEY] is None and not weighed(seen)


def texts(reg: Registry) -> Task:
    """A task of texts for which everybody holds items."""
    for n in range(9):
        user = reg.users.get(f"user{n}").id
        reg.items.append_items(user, [NewItem(f"w{k}", "words", f"line {k} of {n}", "some words") for k in range(6)])
    return replace(TASK, name="words", kind="text", labels=(), metric="rouge")


def items(*counts: int) -> list[Item]:
    numbers = iter(range(10_000))
    owners = [user for user, count in enumerate(counts) for _ in range(count)]
    return [Item(next(numbers), user, "k", "t", "in", "out", None) for user in owners]


@pytest.mark.parametrize("counts", [(1,), (2, 9, 300), (7,) * 40, (3,) * 700])
def test_lessons_are_of_all_people_evenly_and_never_show_what_they_ask(counts: tuple[int, ...]) -> None:
    found = sample_cases(items(*counts), 0)
    assert 0 < len(found) <= knn_weight.MAX_GUESSED_ITEMS and found == sample_cases(items(*counts), 0)
    each = Counter(one.item.user_id for one in found)
    assert len(each) == min(len(counts), knn_weight.MAX_GUESSED_ITEMS)
    most = max(1, knn_weight.MAX_GUESSED_ITEMS // len(each))
    assert all(count == min(most, counts[user]) for user, count in each.items())
    for one in found:
        assert one.item not in one.shots and len(set(one.shots)) == len(one.shots)
        assert len(one.shots) == min(5, counts[one.item.user_id] - 1)
        assert {shot.user_id for shot in one.shots} <= {one.item.user_id}
