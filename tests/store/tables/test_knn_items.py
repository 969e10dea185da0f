"""Neighbours of a bank: kept with it, gone with their item's person, silent without consent."""

from __future__ import annotations

import pytest

from mta_cli.errors import IntegrityFault
from store.records import Bank, Neighbour
from store.registry import Registry
from tests.store.making import bank, person


@pytest.fixture
def full(reg: Registry) -> tuple[Registry, Bank]:
    """A bank that keeps both items of two people."""
    users = [person(reg, name, "a fox", "the sea") for name in ("alice", "bob")]
    kept = bank(reg, users[:1])
    items = [item for user in users for item in reg.items.recent_items(user, "free")]
    reg.neighbours.add_neighbours(kept.id, [(item.id, bytes([item.id, 0])) for item in items])
    return reg, kept


def test_they_come_with_their_person_and_output_in_the_order_of_items(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    alice, bob = reg.users.get("alice").id, reg.users.get("bob").id
    found = reg.neighbours.consenting_neighbours(kept.id)
    assert [one.user_id for one in found] == [alice, alice, bob, bob]
    assert found[0] == Neighbour(found[0].item_id, alice, "answer", bytes([found[0].item_id, 0]))
    assert (
        reg.neighbours.item_ids(kept.id) == {one.item_id for one in found}
        and reg.neighbours.count_neighbours(kept.id) == 4
    )
    assert reg.neighbours.consenting_neighbours(kept.id + 1) == [] and reg.neighbours.count_neighbours(kept.id + 1) == 0


def test_an_item_is_kept_once(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    with pytest.raises(IntegrityFault):
        reg.neighbours.add_neighbours(kept.id, [(reg.neighbours.consenting_neighbours(kept.id)[0].item_id, b"xx")])


def test_they_go_with_their_person(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    reg.users.forget(reg.users.get("alice").id)
    assert {one.user_id for one in reg.neighbours.consenting_neighbours(kept.id)} == {reg.users.get("bob").id}
    assert reg.neighbours.count_neighbours(kept.id) == 2 and reg.check_integrity() == []


def test_they_go_with_the_bank(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    reg.banks.remove(kept.id)
    assert reg.neighbours.count_neighbours(kept.id) == 0 and reg.count_rows()["items"] == 4


def test_who_withdraws_consent_is_no_neighbour(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    reg._db.execute_write("UPDATE users SET can_anchor = 0 WHERE name = 'bob'")
    assert {one.user_id for one in reg.neighbours.consenting_neighbours(kept.id)} == {reg.users.get("alice").id}


def test_a_kernel_is_kept_with_the_bank(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    assert kept.kernel is None
    reg.banks.set_kernel(kept.id, {"sharpness": 8.0, "votes": 1.25, "habit": 0.5})
    assert reg.banks.by_id(kept.id).kernel == {"sharpness": 8.0, "votes": 1.25, "habit": 0.5}


def test_they_are_counted_by_bank(full: tuple[Registry, Bank]) -> None:
    reg, kept = full
    alice, bob = reg.users.get("alice").id, reg.users.get("bob").id
    reg.neighbours.remove_neighbours(kept.id, [reg.items.recent_items(bob, "free")[0].id])
    assert reg.neighbours.count_by_bank(alice) == {(kept.name, kept.version): 2}
    assert reg.neighbours.count_by_bank(bob) == {(kept.name, kept.version): 1}
    assert reg.neighbours.count_by_bank(bob + 1) == {}
