"""Chooses the number of anchors and the minimum items of an anchor from the data, if the options leave them open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mta_cli.events import PlanLine
from mta_cli.options import USUAL_ANCHORS, USUAL_MIN_ITEMS, BankOptions

if TYPE_CHECKING:
    from store.registry import Registry

USERS_PER_ANCHOR = 3
"""At least this many candidates for each anchor, so that every anchor represents several users."""
BY_THE_DATA = "by the data"


@dataclass(frozen=True)
class BankSizes:
    """Options with both numbers filled in, and a plan line for each number that was chosen from the data."""

    options: BankOptions
    plan_lines: tuple[PlanLine, ...]


def choose_bank_sizes(
    reg: Registry, task: str, options: BankOptions, user_ids: frozenset[int] | None = None
) -> BankSizes:
    """Choose a bank's sizes from the item counts of users who may be anchors, among `user_ids` (None: all users)."""
    if None not in (options.anchors, options.min_items):
        return BankSizes(options, ())
    held = [
        count
        for user, count in reg.users.users_with_items(task)
        if user.can_anchor and count and (user_ids is None or user.id in user_ids)
    ]
    return choose_sizes(held, options)


def choose_sizes(held: Sequence[int], options: BankOptions) -> BankSizes:
    """Choose the sizes from `held`, each user's number of items. Values given in `options` are kept."""
    lines = []
    if options.min_items is None:
        # the usual minimum; if too few users reach it, the number of items that half of the users have
        needed = min(USERS_PER_ANCHOR * USUAL_ANCHORS, -(-len(held) // 2))
        least = min(USUAL_MIN_ITEMS, sorted(held, reverse=True)[needed - 1]) if held else USUAL_MIN_ITEMS
        options = replace(options, min_items=least)
        enough = sum(count >= options.anchor_items for count in held)
        lines.append(
            PlanLine(
                "items of an anchor", f"{options.anchor_items}: {enough} of {len(held)} users have them", BY_THE_DATA
            )
        )
    if options.anchors is None:
        able = sum(count >= options.anchor_items for count in held)
        options = replace(options, anchors=max(1, min(USUAL_ANCHORS, able // USERS_PER_ANCHOR)))
        why = "the default" if options.anchors == USUAL_ANCHORS else f"a third of the {able} users who can be anchors"
        lines.append(PlanLine("anchors", f"{options.anchors}: {why}", BY_THE_DATA))
    return BankSizes(options, tuple(lines))
