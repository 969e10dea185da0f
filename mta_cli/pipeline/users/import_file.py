"""Imports files of histories: checks the whole file, then writes it, in batches if it is large.

Keeps stored items unchanged. The formats are read by `parse_file`.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mta_cli.engine.text.task_files import task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import MtaError, UsersChanged
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobResult, JobStarted, Note, PlanLine
from mta_cli.pipeline.data.confusable_names import confusable_name_warnings
from mta_cli.pipeline.data.formats.catalog import FORMATS
from mta_cli.pipeline.data.formats.parse_results import SourceLocation, format_value
from mta_cli.pipeline.data.formats.rows import is_content_key
from mta_cli.pipeline.data.formats.timestamps import may_be_same_day
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.data.parse_file import FindTask, ParsedFile, import_notes, parse_import_file
from mta_cli.pipeline.data.tasks import find_task, store_task
from mta_cli.pipeline.users.consent import change_consent
from mta_cli.pipeline.users.dependents import StaleParts
from mta_cli.text.formatting import join_some, join_words
from store.tables.items import hash_texts

if TYPE_CHECKING:
    from mta_cli.engine.text.tasks import Task
    from store.records import NewItem
    from store.registry import Registry
    from store.staged_records import StagedRecord, StagedRecords
    from store.tables.items import StoredKey

T = TypeVar("T", bound=Sequence[Any])
AskConsent = Callable[[int], bool]

BATCH_RECORDS, BATCH_CHARACTERS = 1_000, 4_000_000
"""The most records, and characters of text, in memory at once."""
MAX_WHOLE_RECORDS = 5_000
"""The most records, or users, of a file that is written in one transaction, for which other writers wait."""
TURN_SECONDS, PAUSE_SECONDS = 0.4, 0.1
"""The duration of a transaction in a large import, and of the pause for other writers after it."""


KEPT_ITEMS = 3
"""The minimum of history items that a user keeps when others are held out."""
NAMED_USERS = NAMED_TWINS = 5


class StagedSource(NamedTuple):
    """A checked file (`intake`), and the state of the store at that time.

    `known` counts the file's items (False) and queries (True) that are already stored. `names` are the names of all
    stored users, and `last` are the `last_row_ids`.
    """

    intake: ParsedFile
    known: Counter[bool]
    names: list[str]
    last: tuple[int, int]


def import_file(
    reg: Registry,
    format: str | None,
    path: Path,
    *,
    task: str | None = None,
    outputs: Path | None = None,
    can_anchor: bool | None = None,
    ask: AskConsent | None = None,
    user: str | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Import a file in the given format; see `import_source`."""
    source = ImportSource(format, path, task, outputs, user)
    return import_source(reg, source, can_anchor=can_anchor, ask=ask, dry_run=dry_run)


def import_source(
    reg: Registry,
    source: ImportSource,
    *,
    task: Task | None = None,
    can_anchor: bool | None = None,
    ask: AskConsent | None = None,
    dry_run: bool = False,
) -> Iterator[Event]:
    """Import a file or a folder. `can_anchor` None leaves known users' consent unchanged.

    `ask`, called with the number of new users, decides whether these may be anchors; without it they may, unless the
    inputs are other people's words or the users are third parties. `task`, or the source's own task, is added to the
    store with the records unless it exists.

    Raises `NotFound` for a missing file or task, `BadInput` with every fault of the file, and `UsersChanged` if a known
    user is removed meanwhile, or if another import stores a history item of this file as a query or the reverse.
    """
    source.require_consistent()
    with reg.stage_records() as staged:
        found = yield from stage_source(reg, source, staged, _make_task_finder(reg, source, task))
        intake, known, names, _ = found
        stored = set(names)
        yield from hold_out_notes(source, intake)
        yield from import_notes(intake)
        if intake.input_authors:
            yield _consent_note(f"the inputs are the words of {' and '.join(intake.input_authors)}", can_anchor)
        elif intake.third_parties and ask is None:
            yield _consent_note(f"the users are {intake.third_parties}", can_anchor)
        alike = confusable_name_warnings(intake.user_names, names)
        yield from (Note(text, warning=True) for text in alike)
        if dry_run:
            yield JobPlan("import", _plan(source, intake, stored, known, can_anchor))
            counts = {"items": intake.counts[False], "queries": intake.counts[True]}
            yield JobResult(_summary(source, intake) | counts | {"dry_run": True})
            return
        new = sum(name not in stored for name in intake.user_names)
        if can_anchor is not None or intake.input_authors:
            newcomers = can_anchor is True
        elif ask is None or not new:
            newcomers = not intake.third_parties
        else:
            newcomers = ask(new)
        yield from _write(reg, source, task, found, can_anchor, newcomers)


def stage_source(
    reg: Registry, source: ImportSource, staged: StagedRecords, find: FindTask
) -> Generator[Event, None, StagedSource]:
    """Check a file, stage its records and hold some out; stores nothing.

    Raises the errors of `import_source`.
    """
    intake = yield from parse_import_file(source, find, staged)
    last, names = reg.items.last_row_ids(), reg.users.names()
    known = _reconcile_with_store(reg, source, intake, set(names))
    intake.findings.raise_faults(source.name, "stored items never change: give a changed item a new id")
    intake.require_labels(source.name)
    if source.hold_out:
        intake.held_out = intake.staged.hold_out(source.hold_out, KEPT_ITEMS, source.seed)
        intake.counts.update({False: -intake.held_out.queries, True: intake.held_out.queries})
    return StagedSource(intake, known, names, last)


def _consent_note(whose: str, can_anchor: bool | None) -> Note:
    """A note on other people's data and the consequence for consent."""
    rule = ": new users may not be anchors unless you add --can-anchor" if can_anchor is None else ""
    return Note(whose + rule)


def _make_task_finder(reg: Registry, source: ImportSource, task: Task | None) -> FindTask:
    """A function that finds a task by name: in the store, or `task`, or the source's own task."""
    brought = source.own_task if task is None else task

    def find(name: str) -> Task:
        if brought is not None and name == brought.name and reg.tasks.get(name) is None:
            return brought
        return find_task(reg, name)

    return find


def hold_out_notes(source: ImportSource, intake: ParsedFile) -> Iterator[Note]:
    """Notes on users with fewer queries than requested, and the reasons."""
    held = intake.held_out
    if held.short:
        named = join_some([format_value(user) for user, _ in held.short], NAMED_USERS)
        few = f"users with fewer than {source.hold_out:,} held-out queries"
        yield Note(f"{few}, because {KEPT_ITEMS} items stay history: {named}", warning=True)
    if held.fixed:
        counts = [f"{format_value(user)} has {count:,}" for (user, _), count in held.fixed.items()]
        yield Note(
            f"users whose number of held-out queries is not {source.hold_out:,}, because stored items stay history or "
            f"held out as they are: {join_some(counts, NAMED_USERS)}; with another --task the file is stored as new "
            "data",
            warning=True,
        )


def _reconcile_with_store(reg: Registry, source: ImportSource, intake: ParsedFile, stored: set[str]) -> Counter[bool]:
    """Match records with stored ones and count the matches by kind. Different content is a fault.

    Times on the same day, or a time that only one side has, do not contradict; the stored record stays unchanged. A
    stored query stays a query, so that held-out items are never trained on. An item without an id of its own also
    matches if its time, which is part of its hashed id, was read differently before. A stored commit that was amended
    stays as it is stored.
    """
    known = Counter[bool]()
    kinds = {FORMATS[form].kind for form in intake.formats}
    from_rows = "document" not in kinds
    ids = {name: reg.users.get(name).id for name in intake.user_names if name in stored}
    keys_by_text_hash = functools.lru_cache(1)(reg.items.keys_by_text_hash)
    for record in intake.staged.by_user() if ids else ():
        item, user_id = record.item, ids.get(record.user)
        if user_id is None:
            continue
        held_out = record.held_out
        # 1. the stored record with this id, else with the same texts and day
        there, query = _find_stored(reg, user_id, item, held_out)
        if there is None and query is None and is_content_key(item.key):
            alike = keys_by_text_hash(user_id, item.task).get(hash_texts(item.input, item.output), ())
            if (key := _adopt_stored_key(intake, record, alike)) is not None:
                there, query = _find_stored(reg, user_id, replace(item, key=key), held_out)
        # 2. an item that is stored as a query becomes a query
        if query is not None:
            same = (query.input, query.output) == (item.input, item.output)
            if (from_rows or same) and intake.staged.turn_into_query(record.id):
                there, held_out = query, True
                intake.counts.update({False: -1, True: 1})
        # 3. compare the contents; the stored record is never changed
        if there is None:
            continue
        known[held_out] += 1
        intake.staged.mark_stored(record.id)
        same = (there.input, there.output) == (item.input, item.output)
        if not same and "repository" in kinds:
            intake.staged.set_content(record.id, record.user, there)
        elif not (same and may_be_same_day(there.time, item.time)):
            what = f"{format_value(item.key)} of {format_value(record.user)} is stored already and says something else"
            intake.findings.add_fault(
                SourceLocation(source.name, record.record, record.line), what, "id", of_record=False
            )
        elif there.time != item.time:
            intake.staged.set_time(record.id, there.time)
            intake.times_not_stored += there.time is None
    return known


def _find_stored(reg: Registry, user_id: int, item: NewItem, held_out: bool) -> tuple[NewItem | None, NewItem | None]:
    """The stored record of the item's kind with its id, and a stored query with its id.

    The query is looked up only for a history item without such a record.
    """
    there = reg.items.find_stored(user_id, item, held_out=held_out)
    asked = None if held_out or there is not None else reg.items.find_stored(user_id, item, held_out=True)
    return there, asked


def _adopt_stored_key(intake: ParsedFile, record: StagedRecord, alike: Sequence[StoredKey]) -> str | None:
    """Give the record the id of a stored record with the same texts and day. Returns the id; None if none is left.

    `alike` are the stored records with the same texts. If none is left, the record is marked as a repetition.
    """
    for each in alike:
        if may_be_same_day(each.time, record.item.time) and intake.staged.set_key(record.id, each.key):
            return each.key
    if alike:
        intake.staged.mark_repeat(record.id)
        intake.repeated_queries.update((record.user, record.item.task, each.key) for each in alike if each.held_out)
    return None


def _write(
    reg: Registry,
    source: ImportSource,
    task: Task | None,
    found: StagedSource,
    can_anchor: bool | None,
    newcomers: bool,
) -> Iterator[Event]:
    """Write the staged records: a few in one transaction, many in several, between which other processes can write."""
    intake, _, users, last = found
    stored = set(users)
    total, names = intake.counts.total(), intake.user_names
    yield JobStarted(f"import {source.name}", total, "items")
    counts = dict.fromkeys(("items_added", "items_unchanged", "queries_added", "queries_unchanged"), 0)
    ids: dict[str, int] = {}

    def add_users(batch: Sequence[str]) -> None:
        _require_users_not_removed(reg, stored.intersection(batch))
        ids.update((name, reg.users.get_or_create_user(name, can_anchor=newcomers)[0].id) for name in batch)
        for name in intake.findings.groups.keys() & batch:
            reg.users.set_group(ids[name], source.default_task, intake.findings.groups[name])

    def add_records(batch: Sequence[StagedRecord]) -> None:
        nonlocal last
        _require_same_record_kinds(reg, intake.staged, last)
        items = [(ids[record.user], record.item) for record in batch if not record.held_out]
        queries = [(ids[record.user], record.item) for record in batch if record.held_out]
        for name, count in zip(counts, reg.items.bulk_append(items, queries), strict=True):
            counts[name] += count
        last = reg.items.last_row_ids()

    few = max(total, len(names)) <= MAX_WHOLE_RECORDS
    written = 0
    try:
        # A small file is written in one transaction. A large one holds its users, and is repeatable after a stop.
        with reg.transaction() if few else nullcontext():
            _add_task(reg, source, task, intake)
            changed = _change_consent(reg, names, can_anchor)
            pause = 0.0 if few else PAUSE_SECONDS
            for _ in _write_in_turns(reg, _batched(names, BATCH_RECORDS), add_users, pause):
                pass
            with nullcontext() if few else reg.hold_users(f"import of {source.name}", ids.values()):
                batches = intake.staged.batches(BATCH_RECORDS, BATCH_CHARACTERS)
                for written in _write_in_turns(reg, batches, add_records, pause):
                    yield JobProgress("", written)
    except MtaError:
        if written and not few:
            said = f"{written:,} of {total:,} records are stored; run the same command again to add the others"
            yield Note(said, warning=True)
        raise
    yield from changed.notes(reg, "users of this file")
    if counts["items_added"] or counts["queries_added"]:
        yield from _duplicate_history_notes(reg, list(intake.tasks), set(ids.values()))
    yield ArtifactSaved("history", source.name, f"new items: {counts['items_added']:,}, users: {len(ids):,}")
    yield JobResult(_summary(source, intake) | counts)


def _duplicate_history_notes(reg: Registry, tasks: Sequence[str], touched: set[int]) -> Iterator[Note]:
    """Warnings about sets of users with the same items, at least one of them `touched`; only the first sets are
    named.
    """
    found = [(task, count, users) for task in tasks for count, users in reg.items.users_with_same_items(task, touched)]
    for task, count, users in found[:NAMED_TWINS]:
        names = [format_value(reg.users.by_id(user).name) for user in users]
        who = join_some(names, NAMED_USERS) if len(names) > NAMED_USERS else join_words(names)
        yield Note(
            f"{who} have the same {count:,} items of {task}: if they are one person, evaluations count this person "
            "twice",
            warning=True,
        )
    if len(found) > NAMED_TWINS:
        yield Note(f"further sets of users with the same items: {len(found) - NAMED_TWINS:,}", warning=True)


def _add_task(reg: Registry, source: ImportSource, task: Task | None, intake: ParsedFile) -> None:
    if task is not None and task.name not in BUILTIN_TASKS:
        store_task(reg, task, task_to_toml(task))
    own = source.own_task
    if own is not None and own.name in intake.tasks and reg.tasks.get(own.name) is None:
        reg.tasks.save_task(own.name, task_to_toml(own))


def _require_users_not_removed(reg: Registry, names: set[str]) -> None:
    """Raises UsersChanged if a user was removed meanwhile, who would be added again without being asked for consent."""
    if reg.users.existing_names(names) != names:
        raise UsersChanged("Users of this file were removed while it was read.", hint="run it again")


def _require_same_record_kinds(reg: Registry, staged: StagedRecords, last: tuple[int, int]) -> None:
    """Raises UsersChanged if, after `last`, an item of the file was stored as a query or a query as an item."""
    for user, task, key, held_out in reg.items.keys_added_after(last):
        if staged.kinds_of_key(user, task, key) == {not held_out}:
            raise UsersChanged("Another import stored items of this file while it was read.", hint="run it again")


def _change_consent(reg: Registry, names: Iterable[str], can_anchor: bool | None) -> StaleParts:
    """Record the consent of the known users among these, if it was given and differs."""
    if can_anchor is None:
        return StaleParts()
    stored = reg.users.existing_names(names)
    known = (reg.users.get(name) for name in names if name in stored)
    return change_consent(reg, [user for user in known if user.can_anchor != can_anchor], can_anchor)


def _batched(names: Iterable[str], most: int) -> Iterator[list[str]]:
    source = iter(names)
    return iter(lambda: list(itertools.islice(source, most)), [])


def _write_in_turns(reg: Registry, batches: Iterable[T], write: Callable[[T], None], pause: float) -> Iterator[int]:
    """Write every batch, several in each transaction of about `TURN_SECONDS`; yields the number of rows written after
    each.

    In the `pause` (seconds) between two transactions other processes can write. A waiting SQLite connection tries again
    every tenth of a second.
    """
    waiting = iter(batches)
    batch, written = next(waiting, None), 0
    while batch is not None:
        with reg.transaction():
            end = time.monotonic() + TURN_SECONDS
            while batch is not None:
                write(batch)
                written += len(batch)
                batch = next(waiting, None)
                if time.monotonic() >= end:
                    break
        yield written
        if batch is not None:
            time.sleep(pause)


def _plan(
    source: ImportSource, intake: ParsedFile, stored: set[str], known: Counter[bool], can_anchor: bool | None
) -> tuple[PlanLine, ...]:
    met = sum(name in stored for name in intake.user_names)
    default = "new users may not" if intake.input_authors or intake.third_parties else "new users may"
    consent = {None: default, True: "all may", False: "none may"}[can_anchor]
    return (
        PlanLine("file", str(source.path), "flag PATH"),
        PlanLine("format", ", ".join(intake.formats), "flag FORMAT" if source.format else "by the content"),
        PlanLine("task", ", ".join(intake.tasks) or "none", "flag --task" if source.task else "derived"),
        PlanLine("users", f"{len(intake.user_names):,}, of whom {met:,} are known already"),
        PlanLine("history items", f"{intake.counts[False]:,}, of which {known[False]:,} are stored already"),
        PlanLine("held-out queries", f"{intake.counts[True]:,}, of which {known[True]:,} are stored already"),
        PlanLine("may be anchors", consent, "default" if can_anchor is None else "flag --can-anchor"),
    )


def _summary(source: ImportSource, intake: ParsedFile) -> dict[str, Any]:
    used = list(intake.tasks)
    return {
        "format": ", ".join(intake.formats),
        "path": str(source.path),
        "task": used[0] if len(used) == 1 else None,
        "tasks": used,
        "users": len(intake.user_names),
    }
