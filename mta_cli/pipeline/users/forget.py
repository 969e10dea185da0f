"""Forgets a user: removes all their data, and lists the anchors trained on it. Knows no terminal and no SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from mta_cli.engine.text.task_files import parse_task
from mta_cli.errors import BadInput
from mta_cli.events import Event, JobPlan, JobResult, Note, PlanLine
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.runs import bank_label
from mta_cli.pipeline.users.dependents import banks_pooling_user, join_names, stale_entries, stale_notes
from mta_cli.pipeline.users.exported_folders import exports_of, remove_drafts
from mta_cli.pipeline.users.in_use import change_when_unused
from mta_cli.pipeline.users.serve_keys import drop_from_keys
from mta_cli.pipeline.users.servers import recheck_servers
from store.database_copy import saved_databases

if TYPE_CHECKING:
    from store.records import Bank, User
    from store.registry import Registry
    from store.tables.users import ForgetResult


def plan_forget(reg: Registry, name: str, *, as_notes: bool = False) -> Iterator[Event]:
    """What `forget_user` would remove, and which anchors go stale; `as_notes` as one note too. Raises `NotFound`."""
    user = reg.users.get(name)
    lines = tuple(_traces(reg, user))
    if as_notes:
        yield Note(", ".join(f"{line.name}: {line.value}" for line in lines))
    yield JobPlan("forget", lines)
    yield JobResult({"user": user.name, "dry_run": True})


def _traces(reg: Registry, user: User) -> Iterator[PlanLine]:
    held = reg.users.tasks_of_user(user.id)
    yield PlanLine("user", user.name)
    yield PlanLine("history items", f"{sum(items for _, items, _ in held):,}")
    yield PlanLine("held-out queries", f"{sum(queries for _, _, queries in held):,}")
    yield PlanLine("recipes", f"{len(reg.recipes.of_user(user.id)):,}")
    yield PlanLine("stacks", f"{len(reg.stacks.of_user(user.id)):,}")
    yield PlanLine("chats", f"{len(reg.chats.of_user(user.id)):,}")
    yield PlanLine("runs", f"{len(reg.runs.of_user(user.id)):,}")
    yield PlanLine("exports, which stay", ", ".join(exports_of(reg, user)) or "none")
    banks = [bank for bank in reg.banks.all() for each in reg.banks.anchors(bank.id) if each.user_id == user.id]
    yield PlanLine("anchor of", ", ".join(map(bank_label, banks)) or "no bank")
    anchors = {bank.id: [a.id for a in reg.banks.anchors(bank.id) if a.user_id == user.id] for bank in banks}
    dependents = {name for bank, own in anchors.items() for name in reg.banks.dependent_users(bank, own)} - {user.name}
    yield PlanLine("recipes and stacks that rest on it", join_names(sorted(dependents)) or "none")


def forget_user(reg: Registry, name: str, *, wait: bool = False) -> Iterator[Event]:
    """Remove a user. Raises NotFound, and UserInUse while a job uses their items, unless it may `wait`.

    The result counts what was removed, and lists what stays: stale anchors, the users who depend on them, task adapters
    that may have been trained on the user's items, and the exported folders.
    """
    user = reg.users.get(name)
    try:
        told, gone = yield from change_when_unused(partial(_forget, reg, user), wait=wait)
    finally:  # also where all is removed and only its bytes are still to be overwritten
        silent = recheck_servers(reg.root)
    for server in silent:
        yield Note(f"the server of process {server} does not answer: end it, it may keep {user.name}", warning=True)
    for path in told.exports:
        yield Note(f"exported to {path}, which is outside the store and is not touched", warning=True)
    for name in told.saved:
        yield Note(f"{name}, the copy from before the last migration, is removed too: it holds {user.name}")
    for task, given in told.labels:
        text = f"labels of task {task} that only they gave stay in it: {', '.join(map(format_value, given))}"
        yield Note(f"{text}; `mta task rm {task}` removes the task", warning=True)
    yield from stale_notes(reg, "them", gone.stale_anchors, gone.dependents, told.pooled)
    text = f"forgotten; history items: {told.items:,}, adapter files: {len(gone.adapters_removed):,}"
    yield Note(text, detail=True)
    yield JobResult(
        {
            "user": gone.name,
            "items": told.items,
            "adapters_removed": gone.adapters_removed,
            **stale_entries(gone.stale_anchors, gone.dependents, told.pooled),
            "exports": told.exports,
        }
    )


class _Before(NamedTuple):
    """What was known of a user: how many items, banks that may use them, exports, database copies, labels by task."""

    items: int
    pooled: list[Bank]
    exports: list[str]
    saved: list[str]
    labels: list[tuple[str, list[str]]]


def _forget(reg: Registry, user: User) -> tuple[_Before, ForgetResult]:
    """Remove the user; returns what was known before.

    The name leaves the keys first: after a stop between the two, the same command goes on.
    """
    reg.jobs.require_unused(user.id, user.name)
    drop_from_keys(reg.root, [user.name])
    items = sum(count for _, count, _ in reg.users.tasks_of_user(user.id))
    saved = [path.name for path in saved_databases(reg.root)]
    labels = list(_own_labels(reg, user))
    told = _Before(items, banks_pooling_user(reg, user), exports_of(reg, user), saved, labels)
    remove_drafts(told.exports)
    return told, reg.users.forget(user.id)


def _own_labels(reg: Registry, user: User) -> Iterator[tuple[str, list[str]]]:
    """The added tasks with labels that the user gave and no other user, and these labels."""
    for name, _, _ in reg.users.tasks_of_user(user.id):
        text = reg.tasks.get(name)
        if text is None:  # built in, or removed
            continue
        with suppress(BadInput):  # it cannot be read
            task = parse_task(text, name)
            if task.kind == "label" and (given := reg.items.outputs_only_of(user.id, name, task.labels)):
                yield name, given
