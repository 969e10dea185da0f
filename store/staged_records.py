"""The records of an import in a temporary database, so that memory stays bounded for files of any size.

Knows no format. The records reach the store's tables only after the whole file is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from store.connection import translate_sqlite_errors
from store.files import disk_fault, hold_temporary
from store.records import NewItem
from store.staged_mails import StagedMails

# Without a journal, because after a crash the file is removed and never read.
_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA temp_store = MEMORY;
PRAGMA cache_size = -16000;
CREATE TABLE records (
    id INTEGER PRIMARY KEY, user TEXT NOT NULL, held_out INTEGER NOT NULL, task TEXT NOT NULL, key TEXT NOT NULL,
    input TEXT NOT NULL, output TEXT NOT NULL, time TEXT, record INTEGER, line INTEGER, content INTEGER NOT NULL,
    stored INTEGER NOT NULL DEFAULT 0, moved INTEGER NOT NULL DEFAULT 0, repeats INTEGER NOT NULL DEFAULT 0,
    UNIQUE (user, task, key, held_out)
);
CREATE TABLE occurrences (user TEXT, task TEXT, digest TEXT, n INTEGER NOT NULL, PRIMARY KEY (user, task, digest))
    WITHOUT ROWID;
BEGIN;
"""
_INSERT = """INSERT INTO records (user, held_out, task, key, input, output, time, record, line, content)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_SELECT_FIRST = """SELECT input, output, time, record FROM records
WHERE user = ? AND task = ? AND key = ? AND held_out = ?"""
_SELECT_RECORDS = "SELECT user, held_out, key, task, input, output, time, record, line, id FROM records"
_SELECT_KINDS = "SELECT held_out FROM records WHERE user = ? AND task = ? AND key = ?"
_SELECT_SIDES = """SELECT user, task, id, key, time, held_out, stored, moved, repeats, content FROM records
ORDER BY user, task, id"""
_SET_KEY = """UPDATE records SET key = :key WHERE id = :id AND NOT EXISTS (
    SELECT 1 FROM records AS other WHERE other.user = records.user AND other.task = records.task AND other.key = :key
)"""
_COUNT_OCCURRENCE = """INSERT INTO occurrences VALUES (?, ?, ?, 1) ON CONFLICT DO UPDATE SET n = n + 1"""
_SELECT_OCCURRENCES = "SELECT n FROM occurrences WHERE user = ? AND task = ? AND digest = ?"
_COUNT_LEAKED = """SELECT count(*) FROM records AS q WHERE held_out
AND EXISTS (SELECT 1 FROM records AS i WHERE i.content = q.content AND NOT i.held_out)"""


class StagedRecord(NamedTuple):
    """A history item or held-out query of a user; `record` and `line` say where it is in the file."""

    user: str
    held_out: bool
    item: NewItem
    record: int | None
    line: int | None
    id: int = 0


class FirstUse(NamedTuple):
    """The earlier record with the same id: its number in the file, and whether the content is the same too."""

    record: int | None
    same: bool


@dataclass
class HeldOut:
    """How many items became queries, and the users (by name and task) who have fewer queries than requested.

    `fixed` maps users with stored items to their number of queries, if it is neither the requested number nor the
    number that the same records would give in an empty store. They are not in `short`.
    """

    queries: int = 0
    short: list[tuple[str, str]] = field(default_factory=list)
    fixed: dict[tuple[str, str], int] = field(default_factory=dict)


class _QueryCandidate(NamedTuple):
    """A record with the facts that decide whether it can become a query."""

    user: str
    task: str
    id: int
    key: str
    time: str | None
    held_out: bool
    stored: bool
    moved: bool  # an item of the file that `turn_into_query` made a query
    repeats: bool
    content: int


class StagedRecords:
    """Records in the order of their file; an id occurs once per user, task and kind (item or query)."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._conn.executescript(_SCHEMA)

    @classmethod
    @contextlib.contextmanager
    def open(cls, root: Path, folder: Path) -> Iterator[StagedRecords]:
        """In the block, an empty temporary database in `folder`; removed at the end, or after a crash when the store is
        opened.

        Raises BadInput or IntegrityFault if the file cannot be made, and the errors of `translate_sqlite_errors`.
        """
        with contextlib.ExitStack() as held:
            try:
                path = held.enter_context(hold_temporary(folder))
            except OSError as error:
                raise disk_fault(folder, error) from error
            held.enter_context(translate_sqlite_errors(root, 0))
            conn = held.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
            yield cls(conn)

    def add(self, new: StagedRecord) -> FirstUse | None:
        """Add a record. If its id is used already, the first record is kept and returned."""
        user, held_out, item, record, line, _ = new
        content = hash((user, item.task, item.input, item.output))
        values = (user, held_out, item.task, item.key, item.input, item.output, item.time, record, line, content)
        if self._conn.execute(_INSERT, values).rowcount:
            return None
        *texts, number = self._conn.execute(_SELECT_FIRST, (user, item.task, item.key, held_out)).fetchone()
        return FirstUse(number, texts == [item.input, item.output, item.time])

    def count_occurrence(self, user: str, task: str, digest: str) -> int:
        """Count one more occurrence of a content; returns how often it occurred so far."""
        self._conn.execute(_COUNT_OCCURRENCE, (user, task, digest))
        return int(self._conn.execute(_SELECT_OCCURRENCES, (user, task, digest)).fetchone()[0])

    @cached_property
    def mails(self) -> StagedMails:
        """The mails of the import, in the same database."""
        return StagedMails(self._conn)

    def set_time(self, number: int, time: str | None) -> None:
        """Change the time of the record with this `id`."""
        self._conn.execute("UPDATE records SET time = ? WHERE id = ?", (time, number))

    def set_content(self, number: int, user: str, item: NewItem) -> None:
        """Give the record with this `id`, which belongs to `user`, the texts and the time of `item`."""
        content = hash((user, item.task, item.input, item.output))
        values = (item.input, item.output, item.time, content, number)
        self._conn.execute("UPDATE records SET input = ?, output = ?, time = ?, content = ? WHERE id = ?", values)

    def set_key(self, number: int, key: str) -> bool:
        """Change the key of the record with this `id`; False if another record of the user and task has that key."""
        return bool(self._conn.execute(_SET_KEY, {"id": number, "key": key}).rowcount)

    def mark_stored(self, number: int) -> None:
        """Mark the record with this `id` as stored, so that `hold_out` does not move it."""
        self._conn.execute("UPDATE records SET stored = 1 WHERE id = ?", (number,))

    def mark_repeat(self, number: int) -> None:
        """Mark the record with this `id` as a repetition of a stored one, so that it does not become a query."""
        self._conn.execute("UPDATE records SET repeats = 1 WHERE id = ?", (number,))

    def turn_into_query(self, number: int) -> bool:
        """Turn the history item with this `id` into a query; False if a query with its key exists."""
        sql = "UPDATE OR IGNORE records SET held_out = 1, moved = 1 WHERE id = ?"
        return bool(self._conn.execute(sql, (number,)).rowcount)

    def kinds_of_key(self, user: str, task: str, key: str) -> set[bool]:
        """The kinds of records with this key: True for a query, False for an item; empty if there are none."""
        return {bool(held_out) for (held_out,) in self._conn.execute(_SELECT_KINDS, (user, task, key))}

    def hold_out(self, most: int, keep: int, seed: int) -> HeldOut:
        """Turn history items into queries until each user has `most` queries in each task or only `keep` items left.

        Takes the latest items if all times are known, else a draw by `seed` and key, so that the same file gives the
        same queries. Items that are stored, or repeat another one's content, stay history items.
        """
        held = HeldOut()
        chosen: list[int] = []
        sides = map(_QueryCandidate._make, self._conn.execute(_SELECT_SIDES))
        for owner, group in itertools.groupby(sides, key=lambda side: (side.user, side.task)):
            records = list(group)
            free = _choose_queries(records, most, keep, seed)
            chosen += [side.id for side in free]
            there = sum(side.held_out for side in records) + len(free)
            usual = {most, _count_queries_in_new_store(records, most, keep, seed)}
            if any(side.stored for side in records) and there not in usual:
                held.fixed[owner] = there
            elif there < most:
                held.short.append(owner)
        self._conn.executemany("UPDATE records SET held_out = 1 WHERE id = ?", ((number,) for number in chosen))
        held.queries = len(chosen)
        return held

    def count_leaked_queries(self) -> int:
        """How many queries have the same input and output as an item of their user and task."""
        self._conn.execute("CREATE INDEX IF NOT EXISTS by_content ON records (content)")
        return int(self._conn.execute(_COUNT_LEAKED).fetchone()[0])

    def __iter__(self) -> Iterator[StagedRecord]:
        return map(_read_record, self._conn.execute(f"{_SELECT_RECORDS} ORDER BY id"))

    def by_user(self) -> Iterator[StagedRecord]:
        """Yields the records grouped by user and task, each group in the order of the file.

        Records may change during the iteration.
        """
        for row in self._conn.execute("SELECT id FROM records ORDER BY user, task, id"):
            yield _read_record(self._conn.execute(f"{_SELECT_RECORDS} WHERE id = ?", row).fetchone())

    def batches(self, records: int, characters: int) -> Iterator[list[StagedRecord]]:
        """Yields all records in lists of at most `records` records and `characters` characters; a longer record is
        alone in its list.
        """
        batch, size = list[StagedRecord](), 0
        for each in self:
            length = len(each.item.input) + len(each.item.output)
            if batch and (len(batch) >= records or size + length > characters):
                yield batch
                batch, size = [], 0
            batch.append(each)
            size += length
        if batch:
            yield batch


def _read_record(row: Sequence[Any]) -> StagedRecord:
    user, held_out, key, task, text, output, time, record, line, number = row
    return StagedRecord(user, bool(held_out), NewItem(key, task, text, output, time), record, line, number)


def _choose_queries(records: Sequence[_QueryCandidate], most: int, keep: int, seed: int) -> list[_QueryCandidate]:
    taken = [side for side in records if side.held_out]
    items = [side for side in records if not side.held_out]
    room = max(0, min(most - len(taken), len(items) - keep))
    return _eligible_for_query(items, {side.key for side in taken}, seed)[:room]


def _count_queries_in_new_store(records: Sequence[_QueryCandidate], most: int, keep: int, seed: int) -> int:
    """How many queries the user would have if the store had none of these records."""
    new = [side._replace(stored=False, held_out=side.held_out and not side.moved) for side in records]
    return sum(side.held_out for side in new) + len(_choose_queries(new, most, keep, seed))


def _eligible_for_query(items: Sequence[_QueryCandidate], taken_keys: set[str], seed: int) -> list[_QueryCandidate]:
    """The items that may become queries, in the order in which they are chosen."""
    times_known = all(item.time is not None for item in items)
    contents = Counter(item.content for item in items)
    new = (item for item in items if not item.stored and not item.repeats)
    free = [item for item in new if contents[item.content] == 1 and item.key not in taken_keys]
    if times_known:
        return sorted(free, key=lambda item: (item.time or "", item.id), reverse=True)
    return sorted(free, key=lambda item: hashlib.sha256(f"{seed}:{item.key}".encode()).digest())
