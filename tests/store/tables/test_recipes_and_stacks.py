"""Recipes and stacks: twelve bytes an anchor, one of each for a user, task and bank."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta_cli.errors import Command, IntegrityFault
from store.records import AnchorWeight, Recipe
from store.registry import Registry
from store.tables.recipes_and_stacks import AnchorTotals, pack_anchor_weights, round_anchor_weights
from tests.store.making import adapted, adapter, bank, person

FLOATS = st.floats(width=32, allow_nan=False)


@settings(deadline=None)
@given(st.lists(st.builds(AnchorWeight, st.integers(0, 2**32 - 1), FLOATS, FLOATS), max_size=20))
def test_packed_shares_come_back(shares: list[AnchorWeight]) -> None:
    packed = pack_anchor_weights(shares)
    assert len(packed) == 12 * len(shares)
    assert round_anchor_weights(shares) == tuple(shares)


def test_the_format_of_a_recipe_is_fixed() -> None:
    assert pack_anchor_weights([AnchorWeight(258, 1.0, -2.0)]) == bytes.fromhex("02010000 0000803f 000000c0")


def test_a_recipe_replaces_the_earlier_one(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    anchor = reg.banks.anchors(made.id)[0].id
    assert reg.recipes.get(bob, "free", made.id) is None
    reg.recipes.save_recipe(Recipe(bob, "free", made.id, "uniform", (), 0))
    reg.recipes.save_recipe(Recipe(bob, "free", made.id, "evidence", (AnchorWeight(anchor, 0.5, 0.25),), 0, "2024"))
    found = reg.recipes.get(bob, "free", made.id)
    assert found == Recipe(bob, "free", made.id, "evidence", (AnchorWeight(anchor, 0.5, 0.25),), 12, "2024")
    assert reg.recipes.of_user(bob) == [found]
    reg.recipes.remove(bob, "free", made.id)
    reg.recipes.remove(bob, "free", made.id)
    assert reg.recipes.of_user(bob) == []


def test_a_stack_replaces_the_earlier_one_and_its_file(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    first = adapted(reg, bob, made, b"first")
    assert reg.stacks.of_user(bob) == [first]
    second = adapted(reg, bob, made, b"second")
    assert reg.stacks.get(bob, "free", made.id) == second
    assert not reg.files.path(first.digest).exists()
    reg.stacks.save_stack(second)
    assert reg.adapters.verified_path(second.digest).exists()
    reg.stacks.remove(bob, "free", made.id)
    reg.stacks.remove(bob, "free", made.id)
    assert reg.stacks.get(bob, "free", made.id) is None
    assert not reg.files.path(second.digest).exists()
    assert reg.check_integrity() == []


def test_replacing_a_stack_asks_about_its_adapter_and_not_about_everybodys(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    adapted(reg, bob, made, b"0")
    work = [0]

    def count() -> None:
        work[0] += 1

    def replaced(content: bytes) -> int:
        first = reg.stacks.of_user(bob)[0].digest
        work[0] = 0
        reg._db._conn.set_progress_handler(count, 1)
        adapted(reg, bob, made, content)
        reg._db._conn.set_progress_handler(None, 1)
        assert not reg.files.path(first).exists()
        return work[0]

    alone = replaced(b"1")
    for number in range(40):
        adapted(reg, person(reg, f"other {number}", "a"), made, b"of other %d" % number)
    assert replaced(b"2") < 1.5 * alone


def test_a_core_is_its_numbers_beside_the_banks_basis(reg: Registry) -> None:
    alice, bob, carol = (person(reg, name, "a") for name in ("alice", "bob", "carol"))
    made = bank(reg, [alice])
    basis = adapter(reg, b"basis", kind="basis", below=made.task_adapter)
    reg.banks._update_bank(made.id, basis=basis)
    first = adapted(reg, bob, made, b"a lora")
    core = replace(first, digest=basis, bytes=4, identity="made so", numbers=b"\x00\x3c\x00\x00")
    reg.stacks.save_stack(core)
    assert reg.stacks.get(bob, "free", made.id) == core and not reg.files.path(first.digest).exists()
    reg.stacks.save_stack(replace(core, user_id=carol, numbers=b"\x00\x00\x00\x3c"))
    for user in (bob, carol):
        reg.stacks.remove(user, "free", made.id)
        assert reg.adapters.verified_path(basis).exists(), "the bank keeps it"
    assert list(reg.user_table.summaries())[1].stack_bytes == 0 and reg.check_integrity() == []
    reg.banks.remove(made.id)
    assert not reg.files.path(basis).exists()


def test_a_file_that_two_stacks_share_stays_until_both_are_gone(reg: Registry) -> None:
    alice, bob, carol = (person(reg, name, "a") for name in ("alice", "bob", "carol"))
    made = bank(reg, [alice])
    shared = adapted(reg, bob, made, b"same").digest
    adapted(reg, carol, made, b"same")
    reg.stacks.remove(bob, "free", made.id)
    assert reg.adapters.verified_path(shared).exists()
    reg.stacks.remove(carol, "free", made.id)
    assert not reg.files.path(shared).exists()


def test_a_stack_needs_a_stored_adapter(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    stack = adapted(reg, bob, bank(reg, [alice]))
    with pytest.raises(IntegrityFault):
        reg.stacks.save_stack(replace(stack, digest="a" * 64))
    assert reg.stacks.of_user(bob) == [stack]


def test_a_loss_that_is_no_number_stays_one(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    stack = adapted(reg, bob, bank(reg, [alice]))
    digest = adapter(reg, b"diverged")
    reg.stacks.save_stack(replace(stack, digest=digest, loss_after=math.nan))
    assert math.isnan(reg.stacks.of_user(bob)[0].loss_after)


def test_the_recipes_on_a_bank_come_with_what_their_stacks_did_on_held_out_queries(reg: Registry) -> None:
    alice, bob, eve = (person(reg, name, "a") for name in ("alice", "bob", "eve"))
    made, other = bank(reg, [alice]), bank(reg, [bob], name="other", key="o")
    stack = adapted(reg, bob, made, b"of bob")
    reg.stacks.save_stack(replace(stack, heldout_before=2.0, heldout_after=1.5))
    adapted(reg, eve, made, b"of eve")
    adapted(reg, alice, other, b"elsewhere")
    reg.recipes.save_recipe(Recipe(alice, "free", made.id, "evidence", (), 0))
    (anchor,) = reg.banks.anchors(made.id)
    assert reg.recipes.anchor_totals(made.id) == {anchor.id: AnchorTotals(2, 0.25, 0.5, 0.5, 1)}
    assert reg.recipes.anchor_totals(99) == {}


def test_an_anchor_of_a_recipe_is_not_removed_alone(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    stack = adapted(reg, bob, made)
    with pytest.raises(IntegrityFault):
        reg._db.execute_write("DELETE FROM anchors")
    with pytest.raises(IntegrityFault):
        reg.recipes.save_recipe(Recipe(bob, "free", made.id, "evidence", (AnchorWeight(99, 0.5, 0.25),), 0))
    assert reg.recipes.of_user(bob)[0].shares == stack.recipe
    reg.banks.remove(made.id)
    assert reg.recipes.of_user(bob) == reg.stacks.of_user(bob) == [] and reg.check_integrity() == []


def test_a_stack_keeps_the_recipe_that_it_was_trained_on(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    stack = adapted(reg, bob, made)
    (share,) = stack.recipe
    reg.recipes.save_recipe(Recipe(bob, "free", made.id, "uniform", (replace(share, weight=1.0),), 0))
    assert reg.stacks.of_user(bob) == [stack]
    reg.recipes.remove(bob, "free", made.id)
    assert reg.stacks.of_user(bob) == [stack]


def test_a_core_that_changed_by_itself_is_named_before_it_is_used(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a"), person(reg, "bob", "a")
    made = bank(reg, [alice])
    lora = adapted(reg, bob, made)
    assert lora.is_intact and reg.stacks.verified_numbers(lora) == b""
    reg.stacks.save_stack(replace(lora, numbers=b"1234", bytes=4))
    (core,) = reg.stacks.of_user(bob)
    assert core.is_intact and reg.stacks.verified_numbers(core) == b"1234"
    reg._db.execute_write("UPDATE stacks SET numbers = x'31323335'")
    (core,) = reg.stacks.of_user(bob)
    assert not core.is_intact
    with pytest.raises(IntegrityFault, match="stack of bob for task free is damaged") as caught:
        reg.stacks.verified_numbers(core)
    assert caught.value.hint == ("train it again: ", Command("user adapt", "bob", task="free"))
    assert reg.check_integrity() == [
        "the stack of bob for task free is damaged: its numbers do not match their SHA-256"
    ]
