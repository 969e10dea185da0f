"""Forgets a person: every trace goes, and anchors that were trained on them are named. Knows no terminal and no SQL."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mta_cli.events import Done, Event, Note, PlanLine, Planned

if TYPE_CHECKING:
    from store.models import User
    from store.registry import Registry


STALE = (
    "stale means: the meta-LoRA still holds what it learned from them, and other users' recipes still use it; "
    "`mta bank build` trains a bank without them, `mta bank rm` removes the old one"
)


def plan_forget(reg: "Registry", name: str, *, aloud: bool = False) -> Iterator[Event]:
    """What `forget_user` would remove, and which anchors would go stale; `aloud` as one note too. Raises `NotFound`."""
    user = reg.users.get(name)
    lines = tuple(_traces(reg, user))
    if aloud:
        yield Note(", ".join(f"{line.name}: {line.value}" for line in lines))
    yield Planned("forget", lines)
    yield Done({"user": user.name, "dry_run": True})


def _traces(reg: "Registry", user: "User") -> Iterator[PlanLine]:
    held = reg.users.tasks_of(user.id)
    yield PlanLine("user", user.name)
    yield PlanLine("history items", f"{sum(items for _, items, _ in held):,}")
    yield PlanLine("held-out queries", f"{sum(queries for _, _, queries in held):,}")
    yield PlanLine("recipes", f"{len(reg.recipes.of_user(user.id)):,}")
    yield PlanLine("stacks", f"{len(reg.stacks.of_user(user.id)):,}")
    yield PlanLine("chats", f"{len(reg.chats.of_user(user.id)):,}")
    yield PlanLine("runs", f"{len(reg.runs.of_subject(user.name)):,}")
    banks = (bank for bank in reg.banks.all() for each in reg.banks.anchors(bank.id) if each.user_id == user.id)
    yield PlanLine("anchor of", ", ".join(f"{bank.name} v{bank.version}" for bank in banks) or "no bank")


def forget_user(reg: "Registry", name: str) -> Iterator[Event]:
    """Remove a person; the result counts what went and lists the anchors that are stale now. Raises `NotFound`."""
    user = reg.users.get(name)
    items = sum(count for _, count, _ in reg.users.tasks_of(user.id))
    gone = reg.users.forget(user.id)
    for bank, version, anchor in gone.stale_anchors:
        yield Note(f"anchor {anchor} of {bank} v{version} was trained on them: it is stale", warning=True)
    if gone.stale_anchors:
        yield Note(STALE, warning=True)
    yield Note(f"forgotten; history items: {items:,}, adapter files: {len(gone.adapters_removed):,}")
    yield Done(
        {
            "user": gone.name,
            "items": items,
            "adapters_removed": gone.adapters_removed,
            "stale_anchors": [
                {"bank": bank, "version": version, "anchor": anchor} for bank, version, anchor in gone.stale_anchors
            ],
        }
    )
