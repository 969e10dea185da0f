"""What anchors do: how many recipes each is in, its weight, and how those people fared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.pipeline.bank.anchor_use import AnchorUsage, anchor_usage
from store.records import AnchorWeight, Bank, Recipe
from store.registry import Registry
from tests.store import making


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as opened:
        yield opened


def setting(reg: Registry) -> Bank:
    return making.bank(reg, [making.person(reg, "first", "a"), making.person(reg, "second", "a")])


def fused(
    reg: Registry, bank: Bank, name: str, *weights: float, change: tuple[float | None, float | None] | None = None
) -> None:
    """Gives a user a recipe with a weight for each anchor (0: left out); with `change`, a stack too."""
    user = making.person(reg, name, "a")
    if change is not None:
        stack = making.adapted(reg, user, bank, name.encode())
        reg.stacks.save_stack(replace(stack, heldout_before=change[0], heldout_after=change[1]))
    pairs = zip(reg.banks.anchors(bank.id), weights, strict=True)
    shares = tuple(AnchorWeight(anchor.id, 0.5, weight) for anchor, weight in pairs)
    reg.recipes.save_recipe(Recipe(user, "free", bank.id, "evidence", shares, 0))


def test_an_anchor_serves_those_whose_recipes_hold_it(reg: Registry) -> None:
    bank = setting(reg)
    fused(reg, bank, "ann", 0.75, 0.25)
    fused(reg, bank, "bo", 0.5, 0.0)
    first, second = anchor_usage(reg, bank)
    assert (first.user_count, first.weight, first.weight_share) == (2, 0.625, pytest.approx(1.25 / 1.5))
    assert (second.user_count, second.weight, second.weight_share) == (1, 0.25, pytest.approx(0.25 / 1.5))
    assert [use.anchor.user for use in (first, second)] == ["first", "second"]


def test_its_change_is_the_mean_of_theirs_weighted_as_the_anchor_is(reg: Registry) -> None:
    bank = setting(reg)
    fused(reg, bank, "ann", 0.75, 0.25, change=(2.0, 1.0))
    fused(reg, bank, "bo", 0.25, 0.0, change=(2.0, 3.0))
    fused(reg, bank, "unmeasured", 0.5, 0.0, change=(None, None))
    fused(reg, bank, "no stack", 0.5, 0.0)
    first, second = anchor_usage(reg, bank)
    assert (first.heldout_gain, first.measured_users, first.user_count) == (pytest.approx(0.75 - 0.25), 2, 4)
    assert (second.heldout_gain, second.measured_users) == (pytest.approx(1.0), 1)


def test_a_bank_that_nobody_uses_has_anchors_without_use(reg: Registry) -> None:
    bank = setting(reg)
    anchors = reg.banks.anchors(bank.id)
    assert anchor_usage(reg, bank) == [AnchorUsage(anchor, 0, 0.0, 0.0, None, 0) for anchor in anchors]


def test_recipes_without_anchors_and_weights_below_zero_are_counted_as_they_are(reg: Registry) -> None:
    bank = setting(reg)
    reg.recipes.save_recipe(Recipe(making.person(reg, "null", "a"), "free", bank.id, "evidence", (), 0))
    fused(reg, bank, "similarity", -0.5, 0.5, change=(1.0, 0.5))
    first, second = anchor_usage(reg, bank)
    assert (first.user_count, first.weight, first.weight_share, first.heldout_gain) == (1, -0.5, 0.5, 0.5)
    assert (second.user_count, second.weight, second.weight_share, second.heldout_gain) == (1, 0.5, 0.5, 0.5)


def test_another_banks_recipes_do_not_count(reg: Registry) -> None:
    bank = setting(reg)
    other = making.bank(reg, [making.person(reg, "third", "a")], name="other", key="o")
    making.adapted(reg, making.person(reg, "ann", "a"), other)
    assert [use.user_count for use in anchor_usage(reg, bank)] == [0, 0]
    assert [use.user_count for use in anchor_usage(reg, other)] == [1]
