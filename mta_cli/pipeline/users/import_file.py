"""Imports files of histories: a file is checked as a whole, then written in one transaction.

Keeps stored items unchanged. Knows no format (see `parse_file`), no terminal and no SQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.errors import UsersChanged
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobResult, JobStarted, Note, PlanLine
from mta_cli.pipeline.data.confusable_names import confusable_name_warnings
from mta_cli.pipeline.data.formats.parse_results import format_value
from mta_cli.pipeline.data.parse_file import ImportSource, ParsedFile, import_notes, parse_import_file
from mta_cli.pipeline.data.tasks import find_task
from mta_cli.pipeline.users.consent import change_consent

if TYPE_CHECKING:
    from store.registry import Registry

StoredRecords = dict[tuple[bool, str], tuple[str, str, str | None]]
"""The stored records of one user and task: (whether a query, id) → input, output, time."""

AskConsent = Callable[[int], bool]

BATCH = 5_000
"""Records written between two steps of the progress bar."""


def import_file(
    reg: Registry,
    format: str,
    path: Path,
    *,
    task: str | None = None,
    outputs: Path | None = None,
    can_anchor: bool | None = None,
    ask: AskConsent | None = None,
    user: str | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Import a file; `user` is its user. `can_anchor` None leaves known users' consent unchanged.

    For that many new users, `ask` decides whether they may be anchors; without it they may.

    Raises `NotFound` for a missing file or task, `BadInput` with every fault of the file, and `UsersChanged` where a
    known user is removed meanwhile; then nothing was written.
    """
    source = ImportSource(format, path, task, outputs, user)
    intake = yield from parse_import_file(source, lambda name: find_task(reg, name))
    names = reg.users.names()
    stored = set(names)
    known = _count_stored(reg, intake, stored)
    intake.findings.raise_faults(source.path.name, "what is stored never changes: give a changed item a new id")
    yield from import_notes(intake)
    yield from (Note(text, warning=True) for text in confusable_name_warnings(intake.findings.spellings, names))
    if dry_run:
        yield JobPlan("import", _plan(source, intake, stored, known, can_anchor))
        counts = {"items": intake.count(held_out=False), "queries": intake.count(held_out=True)}
        yield JobResult(_summary(source, intake) | counts | {"dry_run": True})
        return
    new = sum(name not in stored for name in intake.user_names)
    newcomers = ask(new) if ask is not None and can_anchor is None and new else can_anchor is not False
    yield from _write(reg, source, intake, stored, can_anchor, newcomers)


def _count_stored(reg: Registry, intake: ParsedFile, stored: set[str]) -> Counter[bool]:
    """Count the stored records, by whether it is a query. An id with other stored content is a fault.

    A time that only one side knows is no contradiction: the stored record stays unchanged.
    """
    known = Counter[bool]()
    ids = {name: reg.users.get(name).id for name in intake.user_names if name in stored}
    held: dict[tuple[str, str], StoredRecords] = {}
    for index, record in enumerate(intake.records):
        if record.user not in ids:
            continue
        item, whose = record.item, (record.user, record.item.task)
        if whose not in held:
            held[whose] = _stored_records(reg, ids[record.user], item.task)
        there = held[whose].get((record.held_out, item.key))
        if there is None:
            continue
        known[record.held_out] += 1
        *texts, time = there
        if texts != [item.input, item.output] or (time != item.time and None not in (time, item.time)):
            what = f"{format_value(item.key)} of {format_value(record.user)} is stored already and says something else"
            intake.findings.add_fault(record.location, what, "id")
        elif time != item.time:
            intake.records[index] = replace(record, item=replace(item, time=time))
            intake.times_not_stored += time is None
    return known


def _stored_records(reg: Registry, user_id: int, task: str) -> StoredRecords:
    items = {(False, item.key): (item.input, item.output, item.time) for item in reg.items.recent_items(user_id, task)}
    return items | {(True, each.key): (each.input, each.gold, each.time) for each in reg.items.queries(user_id, task)}


def _write(
    reg: Registry,
    source: ImportSource,
    intake: ParsedFile,
    stored: set[str],
    can_anchor: bool | None,
    newcomers: bool,
) -> Iterator[Event]:
    yield JobStarted(f"import {source.path.name}", len(intake.records), "items")
    counts = dict.fromkeys(("items_added", "items_unchanged", "queries_added", "queries_unchanged"), 0)
    with reg.transaction():
        _require_still_there(reg, stored.intersection(intake.user_names))
        users = {name: reg.users.get_or_create_user(name, can_anchor=newcomers)[0] for name in intake.user_names}
        ids = {name: user.id for name, user in users.items()}
        others = [user for user in users.values() if can_anchor not in (None, user.can_anchor)]
        changed = change_consent(reg, others, bool(can_anchor))
        for start in range(0, len(intake.records), BATCH):
            batch = intake.records[start : start + BATCH]
            items = [(ids[record.user], record.item) for record in batch if not record.held_out]
            queries = [(ids[record.user], record.item) for record in batch if record.held_out]
            for name, count in zip(counts, reg.items.bulk_append(items, queries), strict=True):
                counts[name] += count
            yield JobProgress("", start + len(batch))
    yield from changed.consequence_notes(reg, "users of this file")
    yield ArtifactSaved("history", source.path.name, f"new items: {counts['items_added']:,}, users: {len(ids):,}")
    yield JobResult(_summary(source, intake) | counts)


def _require_still_there(reg: Registry, names: set[str]) -> None:
    """Raises UsersChanged where one of these users was removed: they would be new, without being asked for consent."""
    if reg.users.existing_names(names) != names:
        raise UsersChanged(
            "Users of this file were removed while it was read: nothing was written.", hint="run it again"
        )


def _plan(
    source: ImportSource, intake: ParsedFile, stored: set[str], known: Counter[bool], can_anchor: bool | None
) -> tuple[PlanLine, ...]:
    met = sum(name in stored for name in intake.user_names)
    consent = {None: "new users may", True: "all may", False: "none may"}[can_anchor]
    return (
        PlanLine("file", str(source.path), "flag PATH"),
        PlanLine("format", source.format, "flag FORMAT"),
        PlanLine("task", ", ".join(intake.tasks) or "none", "flag --task" if source.task else "derived"),
        PlanLine("users", f"{len(intake.user_names):,}, of whom {met:,} are known already"),
        PlanLine("history items", f"{intake.count(held_out=False):,}, of which {known[False]:,} are stored already"),
        PlanLine("held-out queries", f"{intake.count(held_out=True):,}, of which {known[True]:,} are stored already"),
        PlanLine("may be anchors", consent, "default" if can_anchor is None else "flag --can-anchor"),
    )


def _summary(source: ImportSource, intake: ParsedFile) -> dict[str, Any]:
    used = list(intake.tasks)
    return {
        "format": source.format,
        "path": str(source.path),
        "task": used[0] if len(used) == 1 else None,
        "tasks": used,
        "users": len(intake.user_names),
    }
