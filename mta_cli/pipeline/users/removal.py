"""Removes a user, or some of a user's items, with everything made from them, and reports the parts that stay.

Anchors and task adapters keep what they learned until a bank is refreshed or built again, and exports stay outside the
store. Profiles are computed again when needed; `mta user adapt` makes recipes and stacks again. Uses neither the
terminal nor SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mta_cli.engine.text.task_files import parse_task
from mta_cli.errors import BadInput, Command, Flag, NotFound, UsageError
from mta_cli.events import Event, JobPlan, JobResult, Note, PlanLine
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.data.kept_items import kept_from_chat_at
from mta_cli.pipeline.runs import bank_label
from mta_cli.pipeline.users.dependents import StaleParts, banks_pooling_user
from mta_cli.pipeline.users.exported_folders import exports_of, remove_drafts
from mta_cli.pipeline.users.in_use import change_when_unused
from mta_cli.pipeline.users.serve_keys import drop_from_keys
from mta_cli.pipeline.users.servers import recheck_servers
from mta_cli.text.formatting import join_some, shorten
from store.database_copy import databases_saved_before_migration

if TYPE_CHECKING:
    from store.erase import Erased
    from store.records import Bank, Item, Recipe, Stack, User
    from store.registry import Registry

SHOWN_CHARS = 60  # characters of an item's texts in a plan


def plan_user_removal(reg: Registry, name: str, *, as_notes: bool = False) -> Iterator[Event]:
    """The effect of `remove_user`: removed parts and stale anchors; with `as_notes` also as a note.

    Raises NotFound for an unknown user.
    """
    user = reg.users.get(name)
    yield from _tell_plan("forget", [], list(_user_lines(reg, user)), {"user": user.name}, as_notes=as_notes)


def plan_item_removal(
    reg: Registry, name: str, ids: Sequence[str], *, task: str | None = None, as_notes: bool = False
) -> Iterator[Event]:
    """The effect of `remove_items`; with `as_notes` also as notes.

    Raises the errors of `remove_items`, except UserInUse.
    """
    user = reg.users.get(name)
    found = _find_items(reg, user, ids, task)
    made = _made_from(reg, user, found)
    items = [
        PlanLine(
            f"item {each.key}", f"{each.task}: {shorten(each.input, SHOWN_CHARS)} → {shorten(each.output, SHOWN_CHARS)}"
        )
        for each in found
    ]
    lines = [
        PlanLine("recipes", f"{len(made.recipes):,}"),
        PlanLine("stacks", f"{len(made.stacks):,}"),
        PlanLine("anchor of", ", ".join(map(bank_label, made.anchored)) or "no bank"),
    ]
    yield from _tell_plan("remove items", items, lines, {"user": user.name, "items": len(found)}, as_notes=as_notes)


def _tell_plan(
    title: str, items: list[PlanLine], lines: list[PlanLine], result: Mapping[str, Any], *, as_notes: bool
) -> Iterator[Event]:
    if as_notes:
        for line in items:
            yield Note(f"{line.name}, {line.value}")
        yield Note(", ".join(f"{line.name}: {line.value}" for line in lines))
    yield JobPlan(title, (*items, *lines))
    yield JobResult({**result, "dry_run": True})


def remove_user(reg: Registry, name: str, *, wait: bool = False) -> Iterator[Event]:
    """Remove a user. Raises NotFound, and UserInUse while a job uses the user's items, unless it may `wait`.

    The result counts what was removed, and lists what stays: stale anchors, the users who depend on them, task adapters
    that may have been trained on the user's items, and the exported folders.
    """
    user = reg.users.get(name)

    def prepare() -> _Removal:
        reg.jobs.require_unused(user.id, user.name)
        # done first, so that after an interruption the same command can be repeated
        drop_from_keys(reg.root, [user.name])
        items = sum(count for _, count, _ in reg.users.tasks_of_user(user.id))
        labels = list(_label_notes(reg, user))

        def notes(gone: Erased) -> list[Note]:
            text = f"forgotten; history items: {items:,}, adapter files: {len(gone.adapters_removed):,}"
            return [*labels, Note(text, detail=True)]

        erase, result = partial(reg.users.forget, user.id), {"user": user.name, "items": items}
        return _Removal(user, erase, result, banks_pooling_user(reg, user), notes, user.name, "them")

    yield from _remove(reg, prepare, wait=wait)


def remove_items(
    reg: Registry, name: str, ids: Sequence[str], *, task: str | None = None, wait: bool = False
) -> Iterator[Event]:
    """Remove the user's items with these ids, all or none, and what was made from them.

    The items must be of one task. Raises NotFound for an unknown user or id, UsageError if items of several tasks
    have these ids and no `task` is given, and UserInUse while a job uses the user's items, unless it may `wait`.
    The result counts what was removed, and lists what stays: stale anchors, the users who depend on them, task adapters
    that may have been trained on the items, and exported folders.
    """

    def prepare() -> _Removal:
        user = reg.users.get(name)
        found = _find_items(reg, user, ids, task)
        made, of, keys = _made_from(reg, user, found), found[0].task, [item.key for item in found]
        notes = [Note(f"removed from {user.name}'s history of {of}: {', '.join(keys)}")]
        if made.recipes or made.stacks:
            again = Command("user adapt", user.name, task=of)
            text = f"recipes and stacks that were made with these items are removed too; `{again}` makes new ones"
            notes.insert(0, Note(text, warning=True))
        erase = partial(reg.items.remove_items, user, of, found, made.since)
        counts = {"recipes": len(made.recipes), "stacks": len(made.stacks)}
        result = {"user": user.name, "task": of, "items": keys, **counts}
        return _Removal(user, erase, result, made.pooled, lambda _: notes)

    yield from _remove(reg, prepare, wait=wait)


@dataclass(frozen=True)
class _Removal:
    """A prepared removal. `erase` removes the data, `result` counts the removed parts, `notes` has details.

    The task adapters of the `pooled` banks may be trained on the removed items. `what` and `whose` name these in notes.
    """

    user: User
    erase: Callable[[], Erased]
    result: Mapping[str, Any]
    pooled: list[Bank]
    notes: Callable[[Erased], list[Note]]
    what: str = "the removed items"
    whose: str = "the removed items"


def _remove(reg: Registry, prepare: Callable[[], _Removal], *, wait: bool) -> Iterator[Event]:
    """Do a removal and report the parts that stay. It is prepared again after each wait, because a job may have made
    more meanwhile.
    """

    def change() -> tuple[_Removal, list[str], list[str], Erased]:
        removal = prepare()
        exports, saved = (
            exports_of(reg, removal.user),
            [path.name for path in databases_saved_before_migration(reg.root)],
        )
        remove_drafts(exports)
        return removal, exports, saved, removal.erase()

    try:
        removal, exports, saved, gone = yield from change_when_unused(change, wait=wait)
    finally:  # also if the rows are deleted and only their bytes remain to be overwritten
        silent = recheck_servers(reg.root)
    for server in silent:
        yield Note(
            f"the server of process {server} does not answer: end it, because it may still use {removal.what}",
            warning=True,
        )
    for path in exports:
        yield Note(f"exported to {path}, which is outside the store and is not touched", warning=True)
    for each in saved:
        yield Note(f"{each}, the copy from before the last migration, is removed too: it holds {removal.what}")
    stale = StaleParts.find(reg, gone.stale_anchors, removal.pooled)
    yield from stale.notes(reg, removal.whose)
    yield from removal.notes(gone)
    left = {"adapters_removed": gone.adapters_removed, **stale.entries(), "exports": exports}
    yield JobResult({**removal.result, **left})


def _user_lines(reg: Registry, user: User) -> Iterator[PlanLine]:
    held = reg.users.tasks_of_user(user.id)
    yield PlanLine("user", user.name)
    yield PlanLine("history items", f"{sum(items for _, items, _ in held):,}")
    yield PlanLine("held-out queries", f"{sum(queries for _, _, queries in held):,}")
    yield PlanLine("recipes", f"{len(reg.recipes.of_user(user.id)):,}")
    yield PlanLine("stacks", f"{len(reg.stacks.of_user(user.id)):,}")
    yield PlanLine("chats", f"{len(reg.chats.of_user(user.id)):,}")
    yield PlanLine("runs", f"{len(reg.runs.of_user(user.id)):,}")
    yield PlanLine("exports, which stay", ", ".join(exports_of(reg, user)) or "none")
    anchors = [
        (bank, one.id) for bank in reg.banks.all() for one in reg.banks.anchors(bank.id) if one.user_id == user.id
    ]
    yield PlanLine("anchor of", ", ".join(bank_label(bank) for bank, _ in anchors) or "no bank")
    dependents = {name for bank, anchor in anchors for name in reg.banks.dependent_users(bank.id, [anchor])}
    yield PlanLine("recipes and stacks that rest on it", join_some(sorted(dependents - {user.name})) or "none")


def _label_notes(reg: Registry, user: User) -> Iterator[Note]:
    """Notes on labels of added tasks that only this user gave, and that the tasks keep."""
    for name, _, _ in reg.users.tasks_of_user(user.id):
        text = reg.tasks.get(name)
        if text is None:  # built in, or removed
            continue
        with suppress(BadInput):  # a stored task that cannot be read
            task = parse_task(text, name)
            if task.kind == "label" and (given := reg.items.outputs_unique_to_user(user.id, name, task.labels)):
                labels = f"labels of task {name} that only this user gave stay in the task"
                yield Note(
                    f"{labels}: {', '.join(map(format_value, given))}; `mta task rm {name}` removes the task",
                    warning=True,
                )


def _find_items(reg: Registry, user: User, ids: Sequence[str], task: str | None) -> list[Item]:
    """The items with these ids in one task."""
    found = [item for item in reg.items.items_with_keys(user.id, ids) if task in (None, item.task)]
    known = {item.key for item in found}
    if missing := [key for key in dict.fromkeys(ids) if key not in known]:
        where = "" if task is None else f" of {task}"
        raise NotFound(
            f"{user.name} has no item{where} with the id {join_some(missing)}.",
            hint=(Command("user items", user.name), " shows the ids"),
        )
    if len(tasks := dict.fromkeys(item.task for item in found)) > 1:
        raise UsageError(
            f"These ids are of items in several tasks: {', '.join(tasks)}.", hint=("say which with ", Flag("task"))
        )
    return found


@dataclass(frozen=True)
class _PartsMadeFromItems:
    """The parts made from items of one task. Parts older than `since` are not affected; it is empty if unknown."""

    since: str
    recipes: list[Recipe]
    stacks: list[Stack]
    anchored: list[Bank]
    pooled: list[Bank]


def _made_from(reg: Registry, user: User, items: list[Item]) -> _PartsMadeFromItems:
    task, since = items[0].task, min(map(kept_from_chat_at, items))

    def trained(digest: str | None) -> bool:
        return digest is not None and reg.adapters.get(digest).created >= since

    def anchors(bank: Bank) -> bool:
        return any(one.user_id == user.id and trained(one.digest) for one in reg.banks.anchors(bank.id))

    return _PartsMadeFromItems(
        since,
        [one for one in reg.recipes.of_user(user.id) if one.task == task and one.created >= since],
        [one for one in reg.stacks.of_user(user.id) if one.task == task and one.created >= since],
        [bank for bank in reg.banks.all() if bank.task == task and anchors(bank)],
        [bank for bank in banks_pooling_user(reg, user) if bank.task == task and trained(bank.task_adapter)],
    )
