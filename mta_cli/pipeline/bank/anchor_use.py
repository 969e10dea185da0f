"""What each anchor of a bank does for people: how many recipes it is in, how heavily, and how those people fared.

Knows no terminal and no SQL.
"""

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
    import numpy as np

    anchors, rows = reg.banks.anchors(bank.id), reg.recipes.recipes_with_losses(bank.id)
    kind = np.dtype([("anchor", "<u4"), ("similarity", "<f4"), ("weight", "<f4")])
    shares = np.frombuffer(b"".join(packed for packed, _, _ in rows), kind)  # [shares of all recipes]
    owner = np.repeat(np.arange(len(rows)), [len(packed) // kind.itemsize for packed, _, _ in rows])
    losses = np.array([(before, after) for _, before, after in rows], float).reshape(-1, 2)  # None becomes NaN
    change = (losses[:, 0] - losses[:, 1])[owner]
    weights = shares["weight"].astype(float)
    total = np.abs(weights).sum()
    uses = []
    for anchor in anchors:
        mine = (shares["anchor"] == anchor.id) & (weights != 0)
        known = mine & np.isfinite(change)
        heavy = np.abs(weights[known])
        uses.append(
            AnchorUsage(
                anchor,
                int(mine.sum()),
                float(weights[mine].mean()) if mine.any() else 0.0,
                float(np.abs(weights[mine]).sum() / total) if total else 0.0,
                float(np.average(change[known], weights=heavy)) if len(heavy) else None,
                int(known.sum()),
            )
        )
    return uses
