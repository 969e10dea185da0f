"""Banks: begun once per key, resumed, versioned, removed with what rests on them."""

from __future__ import annotations

import pytest

from mta_cli.errors import Command, IntegrityFault, NotFound
from store.records import AnchorWeight, Bank, Recipe
from store.registry import Registry
from tests.store.making import BASE, EMBEDDER, adapted, adapter, bank, person


def begin(reg: Registry, key: str = "k", name: str = "free") -> Bank:
    return reg.banks.get_or_create_bank(name, key, "free", BASE, EMBEDDER, 3, {"rank": 8})


def test_the_same_key_is_the_same_bank(reg: Registry) -> None:
    first = begin(reg)
    assert (first.version, first.status, first.seed, first.config, first.task_adapter) == (
        1,
        "building",
        3,
        {"rank": 8},
        None,
    )
    assert begin(reg) == first
    reg.banks.mark_bank_ready(first.id, 10, 2.5)
    ready = begin(reg)
    assert (ready.id, ready.status, ready.tokens, ready.seconds) == (first.id, "ready", 10, 2.5)
    assert begin(reg, "other").version == 2
    assert begin(reg, name="else").version == 1
    assert [(each.name, each.version) for each in reg.banks.all()] == [("else", 1), ("free", 1), ("free", 2)]


def test_a_plan_is_made_once(reg: Registry) -> None:
    users = [person(reg, name, "a") for name in ("alice", "bob")]
    begun = begin(reg)
    plan = [(user, cluster, 4, 9) for cluster, user in enumerate(users)]
    anchors = reg.banks.plan_anchors(begun.id, plan)
    assert [(a.user, a.cluster, a.cluster_size, a.items, a.digest, a.stale) for a in anchors] == [
        ("alice", 0, 4, 9, None, False),
        ("bob", 1, 4, 9, None, False),
    ]
    digest = adapter(reg, b"meta")
    reg.banks.record_trained_anchor(anchors[0].id, digest, 2.0, 1.0)
    again = reg.banks.plan_anchors(begun.id, plan[::-1])
    assert again == reg.banks.anchors(begun.id)
    assert [(a.id, a.digest, a.loss_last) for a in again] == [(anchors[0].id, digest, 1.0), (anchors[1].id, None, None)]


def test_an_anchor_that_was_not_trained_is_stale_when_the_bank_is_ready_and_stays_so(reg: Registry) -> None:
    users = [person(reg, name, "a fox") for name in ("alice", "bob")]
    one = begin(reg)
    first, _ = reg.banks.plan_anchors(one.id, [(user, n, 1, 1) for n, user in enumerate(users)])
    reg.users.set_can_anchor(users[1], False)
    reg.users.set_can_anchor(users[1], True)
    assert [anchor.stale for anchor in reg.banks.anchors(one.id)] == [False, False], "it may still be trained"
    reg.banks.record_trained_anchor(first.id, adapter(reg, b"meta"), 2.0, 1.0)
    reg.banks.mark_bank_ready(one.id, 10, 2.5)
    assert [anchor.stale for anchor in reg.banks.anchors(one.id)] == [False, True]
    for user in users:
        reg.users.set_can_anchor(user, False)
        reg.users.set_can_anchor(user, True)
    assert [anchor.stale for anchor in reg.banks.anchors(one.id)] == [False, True] and reg.check_integrity() == []


def test_only_stored_adapters_and_people_can_be_named(reg: Registry) -> None:
    begun = begin(reg)
    with pytest.raises(IntegrityFault):
        reg.banks.set_task_adapter(begun.id, "a" * 64)
    with pytest.raises(IntegrityFault):
        reg.banks.plan_anchors(begun.id, [(99, 0, 1, 1)])
    assert reg.banks.anchors(begun.id) == []


def test_the_newest_ready_version_is_meant(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    first = bank(reg, [alice])
    second = bank(reg, [alice], key="2", base="other base")
    third = begin(reg, "3")
    assert reg.banks.get("free") == second
    assert reg.banks.get("free", 1) == first
    assert reg.banks.get("free", 3) == third
    assert reg.banks.latest_ready_bank("free") == second
    assert reg.banks.latest_ready_bank("free", BASE) == first
    assert reg.banks.latest_ready_bank("free", "no base") is None
    assert reg.banks.latest_ready_bank("lamp-2") is None


def test_a_missing_bank_is_named_with_what_there_is(reg: Registry) -> None:
    with pytest.raises(NotFound) as caught:
        reg.banks.get("free")
    assert caught.value.hint == (Command("bank list"), " shows all banks; ", Command("bank build"), " builds one")
    begin(reg)
    with pytest.raises(NotFound, match="has no ready version") as caught:
        reg.banks.get("free")
    assert caught.value.hint == "its versions are v1 (building)"
    with pytest.raises(NotFound, match="has no version 7"):
        reg.banks.get("free", 7)
    with pytest.raises(NotFound) as caught:
        reg.banks.get("fre")
    assert caught.value.hint == "did you mean 'free'?"
    with pytest.raises(NotFound, match="has no ready version on this base"):
        reg.banks.get("free", base="no base")
    with pytest.raises(NotFound):
        reg.banks.by_id(99)


def test_removing_a_bank_takes_what_rests_on_it(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    first, second = bank(reg, [alice]), bank(reg, [alice], key="2")
    adapted(reg, bob, first, b"first stack")
    kept = adapted(reg, bob, second, b"second stack")
    evaluation = reg.evaluations.add_evaluation("free", first.id, {}, {})
    assert reg.banks.remove(first.id) == {"anchors": 1, "recipes": 1, "stacks": 1, "adapters": 3}
    assert reg.banks.all() == [second]
    assert [each.bank_id for each in reg.recipes.of_user(bob)] == [second.id]
    assert reg.stacks.of_user(bob) == [kept]
    assert reg.evaluations.get(evaluation).bank_id is None
    assert reg.users.names() == ["alice", "bob"]
    assert reg.check_integrity() == []
    with pytest.raises(NotFound):
        reg.banks.remove(first.id)


def test_a_shared_task_adapter_stays(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    first, second = bank(reg, [alice]), bank(reg, [alice], key="2")
    assert first.task_adapter is not None
    reg.banks.set_task_adapter(second.id, first.task_adapter)
    reg.banks.remove(first.id)
    assert reg.adapters.verified_path(first.task_adapter).exists()


def test_stale_anchors_go_with_what_rests_on_them(reg: Registry) -> None:
    alice, bob, carol, dave = (person(reg, name, "a") for name in ("alice", "bob", "carol", "dave"))
    made = bank(reg, [alice, bob])
    adapted(reg, carol, made)
    stale, fresh = reg.banks.anchors(made.id)
    reg.recipes.save_recipe(Recipe(dave, "free", made.id, "uniform", (AnchorWeight(fresh.id, 1, 1),), 0))
    assert reg.banks.remove_stale_anchors(made.id) == 0
    reg.users.forget(alice)
    assert reg.banks.anchors(made.id)[0].stale
    assert reg.banks.remove_stale_anchors(made.id, [fresh.id]) == 0
    assert reg.banks.remove_stale_anchors(made.id) == 1
    assert [each.id for each in reg.banks.anchors(made.id)] == [fresh.id]
    assert reg.recipes.of_user(carol) == []
    assert reg.stacks.of_user(carol) == []
    assert len(reg.recipes.of_user(dave)) == 1
    assert stale.digest is not None
    assert not reg.files.path(stale.digest).exists()
    assert reg.check_integrity() == []


def test_a_bank_for_an_evaluation_serves_nothing_else(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    measured = bank(reg, [alice], name="eval free", purpose="eval")
    assert measured.purpose == "eval" and reg.banks.by_id(measured.id) == measured
    assert (
        reg.banks.all() == []
        and reg.banks.latest_ready_bank("free") is None
        and reg.banks.latest_ready_bank("free", BASE) is None
    )
    used = bank(reg, [alice])
    later = bank(reg, [alice], name="eval free", key="2", purpose="eval")
    assert reg.banks.all() == [used] and reg.banks.latest_ready_bank("free") == used
    assert (later.version, reg.banks.get("eval free", 2)) == (2, later)


def test_the_same_name_and_key_for_another_purpose_is_another_bank(reg: Registry) -> None:
    """Somebody may call a bank of their own as evaluations call theirs."""
    alice = person(reg, "alice", "a")
    measured = bank(reg, [alice], name="eval free", purpose="eval")
    own = bank(reg, [alice], name="eval free")
    assert own.id != measured.id and reg.banks.all() == [own] and reg.banks.get("eval free") == own
    assert reg.banks.get_or_create_bank("eval free", "k", "free", BASE, EMBEDDER, 0, {}, "eval") == measured


def test_a_bank_of_an_evaluation_is_not_meant_by_its_name(reg: Registry) -> None:
    bank(reg, [person(reg, "alice", "a")], name="eval free", purpose="eval")
    with pytest.raises(NotFound, match="no bank 'eval free'"):
        reg.banks.get("eval free")
