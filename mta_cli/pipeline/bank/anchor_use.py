"""How users use each anchor of a bank: the number of recipes, the weights, and the change in loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from store.records import Anchor, Bank

if TYPE_CHECKING:
    from store.registry import Registry


@dataclass(frozen=True)
class AnchorUsage:
    """One anchor at work: `people` have it in their recipe, on average with `weight`, in all with a `share`.

    `change` is by how much their stacks lowered the loss on held-out queries, in nats a token, weighted as the anchor
    is: a mean over `measured` people, None where that is nobody.
    """

    anchor: Anchor
    user_count: int
    weight: float
    weight_share: float
    heldout_gain: float | None
    measured_users: int


def anchor_usage(reg: Registry, bank: Bank) -> list[AnchorUsage]:
    """What every anchor of a bank does, by its number; weights below zero count as theirs, none as no use."""
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
