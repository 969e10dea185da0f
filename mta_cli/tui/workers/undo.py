"""What the window can take back: items that its answers became. Knows no widget."""

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
    """What undoing would remove: the item in a line, and below it what was made from it since."""

    item: str
    effects: tuple[str, ...]


class UndoStack:
    """The items that this window kept and that are still there, the newest last."""

    def __init__(self) -> None:
        self._kept: list[ItemKept] = []

    @property
    def last(self) -> ItemKept | None:
        """What is undone next."""
        return self._kept[-1] if self._kept else None

    def add(self, kept: ItemKept) -> None:
        """An item was kept."""
        self._kept.append(kept)

    def remove(self, kept: ItemKept) -> None:
        """The item is gone."""
        self._kept.remove(kept)


def plan_undo(reg: Registry, kept: ItemKept) -> UndoPlan:
    """What `undo` would remove. Raises NotFound where the user or the item is gone."""
    from mta_cli.pipeline.users.removal import plan_item_removal

    events = plan_item_removal(reg, kept.user, [kept.name], task=kept.task)
    first, *rest = next(event for event in events if isinstance(event, JobPlan)).lines
    effects = tuple(f"{line.name}: {line.value}" for line in rest if line.value not in NOTHING_VALUES)
    return UndoPlan(f"{kept.user}, {first.value}", effects)


def undo(reg: Registry, kept: ItemKept) -> Iterator[Event]:
    """Remove the item and what was made from it, as `mta user items --rm` does."""
    from mta_cli.pipeline.users.removal import remove_items

    return remove_items(reg, kept.user, [kept.name], task=kept.task)
