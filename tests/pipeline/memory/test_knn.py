"""Keeping a bank's neighbours: which items, resumption; and what they change in answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mta_cli.engine.memory.knn import NeighbourKernel, fit_kernel
from mta_cli.events import JobProgress
from mta_cli.pipeline.bank.build import build_bank
from mta_cli.pipeline.memory import knn
from mta_cli.pipeline.memory.knn import load_embedder, load_neighbours, update_neighbours
from mta_cli.pipeline.models.installed import resolve_model
from store.records import Bank, NewItem
from store.registry import Registry
from tests.pipeline.town import TASK, bank_request, built, finish, notes


def bank_of(reg: Registry) -> Bank:
    bank = reg.banks.latest_ready_bank(TASK.name)
    assert bank is not None
    return bank


def test_a_bank_keeps_what_its_people_answered_to_what(peopled: Registry) -> None:
    peopled.items.append_items(
        peopled.users.get("user0").id, [NewItem("odd", TASK.name, "a film", "no tag of the list")]
    )
    result = built(peopled)
    bank, makers = bank_of(peopled), [f"user{n}" for n in range(9)]
    items = [item for name in makers for item in peopled.items.recent_items(peopled.users.get(name).id, TASK.name)]
    labelled = {item.id: item for item in items if item.output in TASK.labels}
    kept = peopled.neighbours.consenting_neighbours(bank.id)
    assert result["neighbours"] == len(kept) == len(labelled) == 90 and {one.item_id for one in kept} == set(labelled)
    embed = load_embedder(resolve_model("tiny-embedder", "embedder"), "cpu").embed
    for one in kept[::30]:
        row = embed([labelled[one.item_id].input])[0]
        assert np.frombuffer(one.vector, "<f2") == pytest.approx(row, abs=1e-3)
        assert one.output == labelled[one.item_id].output
    known = load_neighbours(peopled, bank, TASK)
    assert known is not None and bank.kernel is not None and result["kernel"] == bank.kernel
    assert NeighbourKernel(**bank.kernel) == fit_kernel(known, TASK.labels, bank.seed)


def test_nothing_is_kept_for_a_task_of_texts(peopled: Registry) -> None:
    texts = replace(TASK, name="words", kind="text", labels=(), metric="rouge")
    for n in range(9):
        user = peopled.users.get(f"user{n}").id
        peopled.items.append_items(
            user, [NewItem(f"w{k}", "words", f"line {k} of {n}", "some words") for k in range(6)]
        )
    result, _ = finish(build_bank(peopled, replace(bank_request(), task=texts)))
    assert result["neighbours"] == 0 and result["kernel"] is None


def test_a_stopped_build_goes_on_with_what_is_missing(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "EMBED_BATCH", 32)
    job = build_bank(peopled, bank_request())
    for event in job:
        if isinstance(event, JobProgress) and event.label == TASK.name and event.done == 64:
            break
    job.close()
    (bank,) = [bank for bank in peopled.banks.all() if bank.status == "building"]
    assert peopled.neighbours.count_neighbours(bank.id) == 64 and bank.kernel is None
    result, seen = finish(build_bank(peopled, bank_request()))
    assert result["neighbours"] == 90 and result["kernel"] is not None
    assert any("the inputs of 26 history items" in text for text in notes(seen))


def test_a_bank_that_lost_them_gets_them_when_it_is_built_again(peopled: Registry) -> None:
    first = built(peopled)
    bank = bank_of(peopled)
    with peopled.transaction():
        peopled._db.execute_write("DELETE FROM neighbours")
        peopled._db.execute_write("UPDATE banks SET kernel = NULL")
    again, seen = finish(build_bank(peopled, bank_request()))
    assert again == first and bank_of(peopled).kernel == bank.kernel
    assert not [event for event in seen if isinstance(event, JobProgress) and event.loss is not None], (
        "nothing is trained"
    )


def test_what_is_there_is_not_embedded_again(banked: Registry, monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse(*given: object) -> None:
        raise AssertionError("an embedder was loaded")

    monkeypatch.setattr(knn, "load_embedder", refuse)
    users = [banked.users.get(f"user{n}") for n in range(9)]
    people = [(user, banked.items.recent_items(user.id, TASK.name)) for user in users]
    entry = resolve_model("tiny-embedder", "embedder")
    assert list(update_neighbours(banked, bank_of(banked), TASK, people, entry, "cpu")) == []


def test_equal_numbers_are_one_label(peopled: Registry) -> None:
    task = replace(TASK, kind="score", metric="mae", labels=("1", "2", "3"))
    user = peopled.users.get("user0").id
    own = [NewItem(f"n{n}", TASK.name, f"film {n}", output) for n, output in enumerate(["1", "01", "2.0", "4"])]
    peopled.items.append_items(user, own)
    bank = peopled.banks.get_or_create_bank("numbers", "k", TASK.name, "b", "e", 0, {})
    items = [item for item in peopled.items.recent_items(user, TASK.name, None) if item.key.startswith("n")]
    change = knn.find_neighbour_change(peopled, bank, task, [(peopled.users.get("user0"), items)])
    assert sorted(item.output for item, _ in change.new_items) == ["01", "1", "2.0"]
    peopled.neighbours.add_neighbours(bank.id, [(item.id, np.ones(2, "<f2").tobytes()) for item, _ in change.new_items])
    index = load_neighbours(peopled, bank, task)
    assert index is not None and sorted(index.labels.tolist()) == [0, 0, 1]
