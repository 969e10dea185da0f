"""History items and held-out queries: appended, read in order, searched. Knows neither prompts nor embeddings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mta_cli.errors import BadInput
from store.connection import Connection, Parameters
from store.names import shown
from store.queries.full_text import best_first, safe_query
from store.records import Item, NewItem, Query
from store.seals import SEALED, is_sound, seal_of, sound

BATCH = 5_000
FAULTS_SHOWN = 20

Row = tuple[int, NewItem]

_INSERT = """INSERT INTO {table} (id, user_id, key, task, input, {answer}, time, seal)
SELECT next, ?1, ?2, ?3, ?4, ?5, ?6, {seal}
FROM (SELECT coalesce((SELECT id FROM {table} ORDER BY id DESC LIMIT 1), 0) + 1 AS next)
WHERE true ON CONFLICT DO NOTHING"""
_STORED = "SELECT input, {answer}, time FROM {table} WHERE user_id = ? AND task = ? AND key = ?"
_ITEM = f"""SELECT items.id, user_id, key, task, items.input, items.output, time, {is_sound("items")} FROM items"""
_QUERY = f"""SELECT id, user_id, key, task, input, gold, time, {is_sound("queries")} FROM queries"""
_OLDER = "(:time IS NULL OR time IS NULL OR time < :time OR (time = :time AND items.id < :id))"
_AMONG = "(:among IS NULL OR items.id IN (SELECT value FROM json_each(:among)))"
# CROSS JOIN keeps this order in SQLite: the index is asked once. Left to itself it asks it anew for each of the items.
_MATCHES = f"""
SELECT items.id, items.input FROM items_fts CROSS JOIN items ON items.id = items_fts.rowid
WHERE items_fts MATCH :match AND user_id = :user AND task = :task AND items.id IS NOT :exclude AND {_OLDER}
    AND {_AMONG}
"""
_SEARCHED = f"""
SELECT count(*) FROM items WHERE user_id = :user AND task = :task AND id IS NOT :exclude AND {_OLDER} AND {_AMONG}
"""
_NUMBERED = f"{_ITEM} WHERE items.id IN (SELECT value FROM json_each(:numbers))"
_LATEST = f"""
{_ITEM} WHERE user_id = :user AND task = :task AND id IS NOT :exclude AND {_OLDER} AND {_AMONG}
ORDER BY time DESC, id DESC LIMIT :limit
"""


class Items:
    """The items and queries of all users. The order is: items without a time, then by time, then by arrival."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def append(self, user_id: int, items: Iterable[NewItem]) -> tuple[int, int]:
        """Add items to a history; returns how many were added and how many were there already, unchanged.

        Raises BadInput, and adds none, when a stored item has other content under the same task and key.
        """
        return self._append("items", ((user_id, item) for item in items))

    def append_queries(self, user_id: int, items: Iterable[NewItem]) -> tuple[int, int]:
        """The same for held-out queries; an item's output is the gold answer."""
        return self._append("queries", ((user_id, item) for item in items))

    def bulk_append(self, rows: Iterable[Row], queries: Iterable[Row] = ()) -> tuple[int, int, int, int]:
        """Both for many users at once: items added and unchanged, queries added and unchanged. All or nothing."""
        with self._db.transaction():
            return (*self._append("items", rows), *self._append("queries", queries))

    def recent(self, user_id: int, task: str, limit: int | None = None) -> list[Item]:
        """The user's `limit` most recent items of a task, or all, oldest first."""
        values = {"user": user_id, "task": task, "exclude": None, "time": None, "id": 0, "among": None}
        values["limit"] = _limit(limit)
        return list(reversed(self._read(_LATEST, values)))

    def count(self, user_id: int, task: str) -> int:
        """How many items the user has of a task."""
        return int(self._db.value("SELECT count(*) FROM items WHERE user_id = ? AND task = ?", (user_id, task)))

    def after(self, user_id: int, task: str, last_item: int) -> list[Item]:
        """The user's items that arrived after item number `last_item`, by number."""
        return self._read(f"{_ITEM} WHERE user_id = ? AND task = ? AND id > ? ORDER BY id", (user_id, task, last_item))

    def search(
        self,
        user_id: int,
        task: str,
        text: str,
        *,
        limit: int,
        exclude: int | None = None,
        before: tuple[str | None, int] | None = None,
        among: Sequence[int] | None = None,
        fill: bool = True,
    ) -> list[Item]:
        """The user's `limit` items whose inputs match `text` best, then, with `fill`, the most recent ones.

        `exclude` is left out. With `before` = (time, item number), so is every item that is not strictly earlier, where
        both times are known; with `among`, every item of another number. `text` is words only: nothing in it is query
        syntax.
        """
        time, number = before if before is not None else (None, 0)
        values = {"user": user_id, "task": task, "exclude": exclude, "time": time, "id": number, "limit": _limit(limit)}
        values["among"] = None if among is None else json.dumps(list(among))
        match = safe_query(user_id, task, text)
        found = self._best(text, values | {"match": match}) if match else []
        if fill and len(found) < limit:
            known = {item.id for item in found}
            latest = self._read(_LATEST, values)
            found += itertools.islice((item for item in latest if item.id not in known), limit - len(found))
        return found

    def queries(self, user_id: int, task: str, limit: int | None = None) -> list[Query]:
        """The user's held-out queries of a task, the first `limit` in order."""
        sql = f"{_QUERY} WHERE user_id = ? AND task = ? ORDER BY time, id LIMIT ?"
        return [Query(*row) for row in sound("queries", self._db.tuples(sql, (user_id, task, _limit(limit))), 1)]

    def data_hash(self, user_ids: Sequence[int], task: str) -> str:
        """`data_hash_of` the whole histories of users, one after another."""
        return _hash(item for user_id in user_ids for item in self.recent(user_id, task))

    def data_hash_of(self, items: Sequence[Item]) -> str:
        """SHA-256 over what the items say, in this order: key, input, output and time."""
        return _hash(items)

    def _best(self, text: str, values: dict[str, Any]) -> list[Item]:
        """The items that match, the best first."""
        found = [(int(number), str(words)) for number, words in self._db.tuples(_MATCHES, values)]
        order = best_first(text, found, int(self._db.value(_SEARCHED, values)))
        chosen = order if values["limit"] < 0 else order[: values["limit"]]
        items = {item.id: item for item in self._read(_NUMBERED, {"numbers": json.dumps(chosen)})}
        return [items[number] for number in chosen if number in items]

    def _read(self, sql: str, values: Parameters) -> list[Item]:
        return [Item(*row) for row in sound("items", self._db.tuples(sql, values), 1)]

    def _append(self, table: str, rows: Iterable[Row]) -> tuple[int, int]:
        added, unchanged, faults = 0, 0, list[str]()
        source = iter(rows)
        with self._db.transaction():
            while batch := list(itertools.islice(source, BATCH)):
                new = self._insert(table, batch)
                if new < len(batch):
                    faults += self._conflicts(table, batch)
                added, unchanged = added + new, unchanged + len(batch) - new
            if faults:
                raise _conflict(faults)
        return added, unchanged

    def _insert(self, table: str, batch: list[Row]) -> int:
        numbers, texts = SEALED[table]
        places = dict(zip((*numbers, *texts), ("next", *(f"?{n}" for n in range(1, 7))), strict=True))
        sql = _INSERT.format(table=table, answer=_answer(table), seal=seal_of(table, places))
        values = ((user_id, item.key, item.task, item.input, item.output, item.time) for user_id, item in batch)
        return self._db.write_many(sql, values)

    def _conflicts(self, table: str, batch: list[Row]) -> Iterator[str]:
        sql = _STORED.format(table=table, answer=_answer(table))
        for user_id, item in batch:
            stored = self._db.tuples(sql, (user_id, item.task, item.key))[0]
            if stored != (item.input, item.output, item.time):
                name = self._db.value("SELECT name FROM users WHERE id = ?", (user_id,))
                what = "item" if table == "items" else "query"
                yield f"{what} {shown(item.key)} of user {shown(name)} already exists with other content"


def _answer(table: str) -> str:
    return "output" if table == "items" else "gold"


def _limit(limit: int | None) -> int:
    return -1 if limit is None else max(0, limit)


def _conflict(faults: list[str]) -> BadInput:
    first, more = faults[0], len(faults) - 1
    return BadInput(
        f"{first}{f', and {more:,} more' if more else ''}; nothing was added.",
        hint="stored items never change: give a changed item a new id",
        faults=tuple(faults[:FAULTS_SHOWN]),
    )


def _hash(items: Iterable[Item]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.key, item.input, item.output, item.time]).encode() + b"\n")
    return digest.hexdigest()
