"""Statistics of each anchor of a bank over users' recipes: number of recipes, weights, and change in loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.records import Anchor, Bank

if TYPE_CHECKING:
    from store.registry import Registry


@dataclass(frozen=True)
class AnchorUsage:
    """Statistics of one anchor: `user_count` users have it in their recipe, with the mean weight `weight`.

    `weight_share` is its share of the weights of all anchors in all recipes. `heldout_gain` is by how much the stacks
    of these users lowered the loss on held-out queries, in nats per token, as a mean over `measured_users` weighted by
    the anchor's weight; None if no user was measured.
    """

    anchor: Anchor
    user_count: int
    weight: float
    weight_share: float
    heldout_gain: float | None
    measured_users: int


def anchor_usage(reg: Registry, bank: Bank) -> list[AnchorUsage]:
    """The statistics of every anchor of a bank, in the bank's order. Negative weights count by their absolute value."""
    used = reg.recipes.anchor_totals(bank.id)
    total = sum(each.total_weight for each in used.values())
    return [
        AnchorUsage(
            anchor,
            one.users,
            one.mean_weight,
            one.total_weight / total,
            one.heldout_gain,
            one.measured_users,
        )
        if (one := used.get(anchor.id)) is not None
        else AnchorUsage(anchor, 0, 0.0, 0.0, None, 0)
        for anchor in reg.banks.anchors(bank.id)
    ]
