"""Anchors in the places of stale ones: all at once, under numbers that no recipe means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mta_cli.errors import IntegrityFault
from store.records import Bank
from store.registry import Registry
from tests.store.making import adapted, adapter, bank, person


def mended(reg: Registry, made: Bank, user: int, *places: int) -> None:
    """Replace the anchors in these places by ones of `user`."""
    anchors = reg.banks.anchors(made.id)
    new = [
        replace(
            anchors[i],
            user_id=user,
            cluster_size=7,
            items=9,
            digest=adapter(reg, f"new {i}".encode(), below=made.task_adapter),
            loss_first=3.0,
            loss_last=1.0,
        )
        for i in places
    ]
    reg.banks.replace_stale_anchors(made.id, new, "another key", {"rank": 2, "label_rates": [1.0]})


def test_a_replacement_takes_the_place_and_no_number_of_the_one_before(reg: Registry) -> None:
    ann, bob, cy = (person(reg, name, "a") for name in ("ann", "bob", "cy"))
    made = bank(reg, [ann, bob])
    first, last = reg.banks.anchors(made.id)
    mended(reg, made, cy, 1)
    kept, new = reg.banks.anchors(made.id)
    assert kept == first and new.id > last.id, "the highest number is not given again"
    assert (new.user, new.cluster, new.cluster_size, new.items, new.stale) == ("cy", last.cluster, 7, 9, False)
    assert (new.loss_first, new.loss_last) == (3.0, 1.0) and not reg.files.path(str(last.digest)).exists()
    found = reg.banks.by_id(made.id)
    assert (found.key, found.config, found.status) == ("another key", {"rank": 2, "label_rates": [1.0]}, "ready")
    assert reg.check_integrity() == []


def test_several_at_once_and_one_after_another(reg: Registry) -> None:
    ann, bob, cy = (person(reg, name, "a") for name in ("ann", "bob", "cy"))
    made = bank(reg, [ann, bob, cy])
    numbers = [anchor.id for anchor in reg.banks.anchors(made.id)]
    mended(reg, made, cy, 0, 2)
    mended(reg, made, ann, 0)
    now = reg.banks.anchors(made.id)
    assert sorted(anchor.cluster for anchor in now) == [0, 1, 2] and not set(numbers) & {a.id for a in now}
    assert reg.check_integrity() == []


def test_what_rested_on_it_goes_and_what_did_not_stays(reg: Registry) -> None:
    ann, bob, cy, dee = (person(reg, name, "a") for name in ("ann", "bob", "cy", "dee"))
    made, other = bank(reg, [ann, bob]), bank(reg, [ann], key="2")
    adapted(reg, cy, made, b"stack of cy")
    adapted(reg, dee, other, b"stack of dee")
    first = reg.banks.anchors(made.id)[0]
    assert reg.banks.dependent_users(made.id, [first.id]) == ["cy"] and reg.banks.dependent_users(made.id) == []
    mended(reg, made, dee, 0)
    assert reg.recipes.of_user(cy) == reg.stacks.of_user(cy) == []
    assert len(reg.recipes.of_user(dee)) == len(reg.stacks.of_user(dee)) == 1
    assert reg.check_integrity() == []


def test_a_replacement_that_cannot_be_leaves_all_as_it_was(reg: Registry) -> None:
    ann, bob, cy = (person(reg, name, "a") for name in ("ann", "bob", "cy"))
    made = bank(reg, [ann, bob])
    adapted(reg, cy, made)
    before = reg.banks.anchors(made.id), reg.banks.by_id(made.id), reg.count_rows()
    lost = replace(before[0][0], user_id=999)
    with pytest.raises(IntegrityFault):
        reg.banks.replace_stale_anchors(made.id, [lost], "k", {})
    assert (reg.banks.anchors(made.id), reg.banks.by_id(made.id), reg.count_rows()) == before


def test_consent_marks_anchors_of_banks_for_use_and_of_no_other(reg: Registry) -> None:
    ann, bob = person(reg, "ann", "a"), person(reg, "bob", "a")
    made, measured = bank(reg, [ann, bob]), bank(reg, [ann], key="e", purpose="eval")
    first = reg.banks.anchors(made.id)[0]
    assert reg.users.set_can_anchor(ann, False) == [("free", 1, first.id)]
    assert [anchor.stale for anchor in reg.banks.anchors(made.id)] == [True, False]
    assert not reg.banks.anchors(measured.id)[0].stale
    assert reg.users.set_can_anchor(ann, False) == [("free", 1, first.id)], "it is still in the bank"
    assert reg.users.set_can_anchor(ann, True) == []
    assert not reg.banks.anchors(made.id)[0].stale


def test_consent_does_not_make_a_forgotten_persons_anchor_fresh(reg: Registry) -> None:
    ann, bob = person(reg, "ann", "a"), person(reg, "bob", "a")
    made = bank(reg, [ann, bob])
    reg.users.forget(ann)
    reg.users.set_can_anchor(bob, False)
    reg.users.set_can_anchor(bob, True)
    assert [anchor.stale for anchor in reg.banks.anchors(made.id)] == [True, False]
