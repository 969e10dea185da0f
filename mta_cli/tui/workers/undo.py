"""Undoes keeping an answer as a history item, and lists everything that a removal removes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mta_cli.events import Event, ItemKept, JobPlan

if TYPE_CHECKING:
    from store.registry import Registry

NOTHING_VALUES = ("0", "no bank", "none")


def removal_effects(events: Iterable[Event]) -> tuple[str, list[str]]:
    """From the plan of a removal: what it removes, in one line, and a line for each part that is removed with it."""
    first, *rest = next(event for event in events if isinstance(event, JobPlan)).lines
    return first.value, [f"{line.name}: {line.value}" for line in rest if line.value not in NOTHING_VALUES]


def plan_undo(reg: Registry, kept: ItemKept) -> tuple[str, list[str]]:
    """The item that `undo` would remove, and what was made from it. Raises NotFound if user or item is gone."""
    from mta_cli.pipeline.users.removal import plan_item_removal

    item, effects = removal_effects(plan_item_removal(reg, kept.user, [kept.name], task=kept.task))
    return f"{kept.user}, {item}", effects


def undo(reg: Registry, kept: ItemKept) -> Iterator[Event]:
    """Remove the kept item and what was made from it, as `mta user items --rm` does."""
    from mta_cli.pipeline.users.removal import remove_items

    return remove_items(reg, kept.user, [kept.name], task=kept.task)
