"""Undoes keeping an answer as a history item. Knows no widget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.events import Event, ItemKept, JobPlan

if TYPE_CHECKING:
    from store.registry import Registry

NOTHING_VALUES = ("0", "no bank")


@dataclass(frozen=True)
class UndoPlan:
    """What undoing removes: the item, in one line, and the parts that were made from it since."""

    item: str
    effects: tuple[str, ...]


def plan_undo(reg: Registry, kept: ItemKept) -> UndoPlan:
    """What `undo` would remove. Raises NotFound if the user or the item no longer exists."""
    from mta_cli.pipeline.users.removal import plan_item_removal

    events = plan_item_removal(reg, kept.user, [kept.name], task=kept.task)
    first, *rest = next(event for event in events if isinstance(event, JobPlan)).lines
    effects = tuple(f"{line.name}: {line.value}" for line in rest if line.value not in NOTHING_VALUES)
    return UndoPlan(f"{kept.user}, {first.value}", effects)


def undo(reg: Registry, kept: ItemKept) -> Iterator[Event]:
    """Remove the kept item and what was made from it, as `mta user items --rm` does."""
    from mta_cli.pipeline.users.removal import remove_items

    return remove_items(reg, kept.user, [kept.name], task=kept.task)
