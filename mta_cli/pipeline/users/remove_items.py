"""Removes single history items of a user, and everything of the user that was made from them.

Profiles are computed again when they are next needed; recipes and stacks are made again by `mta user adapt`. Knows no
terminal and no SQL.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mta_cli.errors import NotFound, UsageError
from mta_cli.events import Event, JobPlan, JobResult, Note, PlanLine
from mta_cli.pipeline.data.kept_items import kept_since
from mta_cli.pipeline.runs import bank_label
from mta_cli.pipeline.users.dependents import (
    banks_pooling_user,
    find_dependents,
    join_names,
    stale_entries,
    stale_notes,
)
from mta_cli.pipeline.users.exported_folders import exports_of, remove_drafts
from mta_cli.pipeline.users.in_use import change_when_unused
from mta_cli.pipeline.users.servers import recheck_servers
from store.database_copy import saved_databases

if TYPE_CHECKING:
    from store.erase_items import RemovedItems
    from store.records import Bank, Item, Recipe, Stack, User
    from store.registry import Registry

SHOWN_CHARS = 60  # characters of an item's texts in a plan


@dataclass(frozen=True)
class ItemTraces:
    """Items of one task, and what was made from them. `since`: nothing older can have been; empty where unknown."""

    task: str
    items: list[Item]
    since: str
    recipes: list[Recipe]
    stacks: list[Stack]
    anchored: list[Bank]
    pooled: list[Bank]


def plan_item_removal(
    reg: Registry, name: str, ids: Sequence[str], *, task: str | None = None, as_notes: bool = False
) -> Iterator[Event]:
    """What `remove_items` would remove; `as_notes` as notes too. Raises what it raises."""
    user = reg.users.get(name)
    found = _find_items(reg, user, ids, task)
    traces = _traces(reg, user, found)
    lines = [
        PlanLine(f"item {item.key}", f"{item.task}: {_shown(item.input)} → {_shown(item.output)}") for item in found
    ]
    lines += [
        PlanLine("recipes", f"{len(traces.recipes):,}"),
        PlanLine("stacks", f"{len(traces.stacks):,}"),
        PlanLine("anchor of", ", ".join(map(bank_label, traces.anchored)) or "no bank"),
    ]
    if as_notes:
        for line in lines[: len(found)]:
            yield Note(f"{line.name}, {line.value}")
        yield Note(", ".join(f"{line.name}: {line.value}" for line in lines[len(found) :]))
    yield JobPlan("remove items", tuple(lines))
    yield JobResult({"user": user.name, "items": len(found), "dry_run": True})


def remove_items(
    reg: Registry, name: str, ids: Sequence[str], *, task: str | None = None, wait: bool = False
) -> Iterator[Event]:
    """Remove the user's items with these ids, all or none, and what was made from them.

    The items must be of one task. Raises NotFound for an unknown user or id, UsageError where items of several tasks
    have these ids and no `task` is given, and UserInUse while a job uses the user's items, unless it may `wait`.
    The result counts what was removed, and lists what stays: stale anchors, the users who depend on them, task adapters
    that may have been trained on the items, and exported folders.
    """

    def change() -> tuple[User, ItemTraces, list[str], list[str], RemovedItems]:
        user = reg.users.get(name)
        traces = _traces(reg, user, _find_items(reg, user, ids, task))
        saved, exports = [path.name for path in saved_databases(reg.root)], exports_of(reg, user)
        remove_drafts(exports)
        gone = reg.items.remove_items(user, traces.task, traces.items, traces.since)
        return user, traces, saved, exports, gone

    try:
        user, traces, saved, exports, gone = yield from change_when_unused(change, wait=wait)
    finally:  # also where all is removed and only its bytes are still to be overwritten
        silent = recheck_servers(reg.root)
    for server in silent:
        yield Note(
            f"the server of process {server} does not answer: end it, it may keep what was removed", warning=True
        )
    for path in exports:
        yield Note(f"exported to {path}, which is outside the store and is not touched", warning=True)
    for each in saved:
        yield Note(f"{each}, the copy from before the last migration, is removed too: it holds the items")
    resting = find_dependents(reg, gone.stale_anchors)
    yield from stale_notes(reg, "what was removed", gone.stale_anchors, resting, traces.pooled)
    if traces.recipes or traces.stacks:
        again = f"mta user adapt {shlex.quote(user.name)} --task {shlex.quote(traces.task)}"
        yield Note(f"recipes and stacks that were made with it are removed too; anew: `{again}`", warning=True)
    yield Note(f"removed from {user.name}'s history of {traces.task}: {', '.join(item.key for item in traces.items)}")
    yield JobResult(
        {
            "user": user.name,
            "task": traces.task,
            "items": [item.key for item in traces.items],
            "recipes": len(traces.recipes),
            "stacks": len(traces.stacks),
            "adapters_removed": gone.adapters_removed,
            **stale_entries(gone.stale_anchors, resting, traces.pooled),
            "exports": exports,
        }
    )


def _find_items(reg: Registry, user: User, ids: Sequence[str], task: str | None) -> list[Item]:
    """The items with these ids in one task."""
    found = [item for item in reg.items.items_with_keys(user.id, ids) if task in (None, item.task)]
    known = {item.key for item in found}
    if missing := [key for key in dict.fromkeys(ids) if key not in known]:
        where = "" if task is None else f" of {task}"
        raise NotFound(
            f"{user.name} has no item{where} with the id {join_names(missing)}.",
            hint=f"mta user items {shlex.quote(user.name)} shows the ids",
        )
    if len(tasks := dict.fromkeys(item.task for item in found)) > 1:
        raise UsageError(f"These ids are of items in several tasks: {', '.join(tasks)}.", hint="say which with --task")
    return found


def _traces(reg: Registry, user: User, items: list[Item]) -> ItemTraces:
    task, since = items[0].task, min(map(kept_since, items))

    def trained(digest: str | None) -> bool:
        return digest is not None and reg.adapters.get(digest).created >= since

    banks = [bank for bank in reg.banks.all() if bank.task == task]
    own = {
        bank.id: [one for one in reg.banks.anchors(bank.id) if one.user_id == user.id and trained(one.digest)]
        for bank in banks
    }
    return ItemTraces(
        task,
        items,
        since,
        [one for one in reg.recipes.of_user(user.id) if one.task == task and one.created >= since],
        [one for one in reg.stacks.of_user(user.id) if one.task == task and one.created >= since],
        [bank for bank in banks if own[bank.id]],
        [bank for bank in banks_pooling_user(reg, user) if bank.task == task and trained(bank.task_adapter)],
    )


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"
