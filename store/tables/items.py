"""History items and held-out queries: appended, read in order, searched. Knows neither prompts nor embeddings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any, NamedTuple

from mta_cli.errors import BadInput, UsersChanged
from store.connection import Connection, SqlParameters
from store.names import quote_text
from store.queries.full_text import drop_kept_texts, fts5_query, rank_bm25
from store.records import Item, NewItem, Query

if TYPE_CHECKING:
    from store.erase import Erased, Eraser
    from store.records import User

INSERT_BATCH_SIZE = 500
"""Rows per INSERT. The full-text index flushes its buffer after every statement, so few large ones are faster."""
MAX_FAULTS_SHOWN = 20
MIN_SAME_ITEMS = 3  # users with exactly the same texts may be one person if they have at least this many texts

UserItem = tuple[int, NewItem]


class StoredKey(NamedTuple):
    """The key and time of a stored history item, or of a query if `held_out`."""

    key: str
    time: str | None
    held_out: bool


# WHERE NOT EXISTS, because a row skipped by ON CONFLICT uses up an id: a repeated import would shift later rows' ids.
_INSERT_ROWS = """INSERT INTO {table} (user_id, key, task, input, {answer}, time) SELECT * FROM (VALUES {rows})
WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE user_id = column1 AND task = column3 AND key = column2)
ON CONFLICT DO NOTHING"""
_SELECT_STORED = "SELECT input, {answer}, time FROM {table} WHERE user_id = ? AND task = ? AND key = ?"
_SELECT_TEXTS = "SELECT key, time, input, {answer} FROM {table} WHERE user_id = ? AND task = ? ORDER BY id"
_SELECT_KEYS_AFTER = """SELECT {table}.id, name, task, key FROM {table} JOIN users ON users.id = user_id
WHERE {table}.id > ? ORDER BY {table}.id LIMIT ?"""
_SELECT_ITEM = "SELECT items.id, user_id, key, task, items.input, items.output, time FROM items"
_SELECT_QUERY = "SELECT id, user_id, key, task, input, gold, time FROM queries"
_IS_EARLIER = "(:time IS NULL OR time IS NULL OR time < :time OR (time = :time AND items.id < :id))"
_IS_AMONG_IDS = "(:among IS NULL OR items.id IN (SELECT value FROM json_each(:among)))"
# CROSS JOIN makes SQLite read the full-text index first and once; otherwise it may read the index again for every item.
_SELECT_MATCHES = f"""
SELECT items.id, items.input FROM items_fts CROSS JOIN items ON items.id = items_fts.rowid
WHERE items_fts MATCH :match AND user_id = :user AND task = :task AND items.id IS NOT :exclude AND {_IS_EARLIER}
    AND {_IS_AMONG_IDS}
"""
_COUNT_SEARCHED = f"""
SELECT count(*) FROM items WHERE user_id = :user AND task = :task AND id IS NOT :exclude AND {_IS_EARLIER}
AND {_IS_AMONG_IDS}
"""
_SELECT_BY_ID = f"{_SELECT_ITEM} WHERE items.id IN (SELECT value FROM json_each(:item_ids))"
_COUNT_STORED = "SELECT count(*) FROM items WHERE id IN (SELECT value FROM json_each(?))"
_SELECT_LATEST_ITEMS = f"""
{_SELECT_ITEM} WHERE user_id = :user AND task = :task AND id IS NOT :exclude AND {_IS_EARLIER} AND {_IS_AMONG_IDS}
ORDER BY time DESC, id DESC LIMIT :limit
"""
_SELECT_OUTPUTS_ONLY_OF = """
SELECT text FROM (
    SELECT trim(output) AS text, user_id FROM items WHERE task = :task
    UNION ALL SELECT trim(gold), user_id FROM queries WHERE task = :task
) WHERE text IN (SELECT value FROM json_each(:texts))
GROUP BY text HAVING min(user_id) = :user AND max(user_id) = :user ORDER BY text
"""


def hash_texts(question: str, answer: str) -> int:
    """A hash of an item's texts, for lookups within this process."""
    return hash((question, answer))


class Items:
    """The items and queries of all users, in this order: items without a time, then by time, then by id."""

    def __init__(self, db: Connection, eraser: Eraser) -> None:
        self._db, self._eraser = db, eraser

    def has_items(self) -> bool:
        """Whether any user has history items."""
        return bool(self._db.fetch_value("SELECT EXISTS (SELECT 1 FROM items)"))

    def append_items(self, user_id: int, items: Iterable[NewItem]) -> tuple[int, int]:
        """Add items to a history; returns how many were added and how many were stored already.

        Raises BadInput, and adds none, when a stored item has other content under the same task and key.
        """
        return self._append_rows("items", ((user_id, item) for item in items))

    def append_queries(self, user_id: int, items: Iterable[NewItem]) -> tuple[int, int]:
        """Add held-out queries; an item's output is the gold answer. Returns and raises the same as `append_items`."""
        return self._append_rows("queries", ((user_id, item) for item in items))

    def bulk_append(self, rows: Iterable[UserItem], queries: Iterable[UserItem] = ()) -> tuple[int, int, int, int]:
        """Add items and queries of many users, all or none.

        Returns how many items were added and how many were stored already, then the same two numbers for queries.
        Raises the errors of `append_items`.
        """
        with self._db.transaction():
            return (*self._append_rows("items", rows), *self._append_rows("queries", queries))

    def find_stored(self, user_id: int, item: NewItem, *, held_out: bool) -> NewItem | None:
        """The user's stored item, or query if `held_out`, with this item's task and key; None if there is none."""
        table = "queries" if held_out else "items"
        sql = _SELECT_STORED.format(table=table, answer=_answer_column(table))
        found = self._db.fetch_tuples(sql, (user_id, item.task, item.key))
        return NewItem(item.key, item.task, *found[0]) if found else None

    def keys_by_text_hash(self, user_id: int, task: str) -> dict[int, list[StoredKey]]:
        """The keys of the user's items and queries of a task, by the hash of their texts."""
        found: dict[int, list[StoredKey]] = {}
        for table in ("items", "queries"):
            sql = _SELECT_TEXTS.format(table=table, answer=_answer_column(table))
            for key, time, *texts in self._db.fetch_tuples(sql, (user_id, task)):
                found.setdefault(hash_texts(*texts), []).append(StoredKey(key, time, table == "queries"))
        return found

    def users_with_same_items(self, task: str, touched: Set[int]) -> list[tuple[int, list[int]]]:
        """Sets of users with the same texts, at least one of them in `touched`: the number of texts, and the users'
        ids.

        A text is an input with its output, of a history item or a query, counted once for a user; users with fewer than
        `MIN_SAME_ITEMS` are left out. Reads every text of the task once, a page at a time.
        """
        # 1. the smallest and largest text hash of each user: equal for users with the same texts
        ends: dict[int, tuple[int, int]] = {}
        for table in ("items", "queries"):
            sql = f"""SELECT id, user_id, input, {_answer_column(table)} FROM {table}
            WHERE id > ? AND task = ? ORDER BY id LIMIT ?"""
            last = 0
            while page := self._db.fetch_tuples(sql, (last, task, INSERT_BATCH_SIZE)):
                for _, user, *texts in page:
                    digest = hash_texts(*texts)
                    low, high = ends.get(user, (digest, digest))
                    ends[user] = min(low, digest), max(high, digest)
                last = page[-1][0]
        alike: dict[tuple[int, int], list[int]] = {}
        for user in sorted(ends):
            alike.setdefault(ends[user], []).append(user)
        # 2. all texts of the few candidates
        same: dict[frozenset[int], list[int]] = {}
        for users in alike.values():
            if len(users) > 1 and not touched.isdisjoint(users):
                for user in users:
                    same.setdefault(frozenset(self.keys_by_text_hash(user, task)), []).append(user)
        found = [(len(texts), users) for texts, users in same.items() if len(texts) >= MIN_SAME_ITEMS]
        return [(count, users) for count, users in found if len(users) > 1 and not touched.isdisjoint(users)]

    def last_row_ids(self) -> tuple[int, int]:
        """The largest ids of items and of queries; rows added later have larger ones."""
        numbers = (self._db.fetch_value(f"SELECT max(id) FROM {table}") for table in ("items", "queries"))
        items, queries = (number or 0 for number in numbers)
        return items, queries

    def keys_added_after(self, last: tuple[int, int]) -> Iterator[tuple[str, str, str, bool]]:
        """Yields (user, task, key, is a query) of all rows with ids above `last`, a result of `last_row_ids`."""
        for table, number in zip(("items", "queries"), last, strict=True):
            sql = _SELECT_KEYS_AFTER.format(table=table)
            while page := self._db.fetch_tuples(sql, (number, INSERT_BATCH_SIZE)):
                for _, user, task, key in page:
                    yield user, task, key, table == "queries"
                number = page[-1][0]

    def recent_items(self, user_id: int, task: str, limit: int | None = None) -> list[Item]:
        """The user's `limit` most recent items of a task, or all, oldest first."""
        values = {"user": user_id, "task": task, "exclude": None, "time": None, "id": 0, "among": None}
        values["limit"] = _sql_limit(limit)
        return list(reversed(self._read_items(_SELECT_LATEST_ITEMS, values)))

    def items_with_keys(self, user_id: int, keys: Sequence[str]) -> list[Item]:
        """The user's items of any task with one of these keys, by id."""
        sql = f"{_SELECT_ITEM} WHERE user_id = ? AND key IN (SELECT value FROM json_each(?)) ORDER BY id"
        return self._read_items(sql, (user_id, json.dumps(list(keys))))

    def remove_items(self, user: User, task: str, items: Sequence[Item], since: str) -> Erased:
        """Remove items of a task and what was made from them for the user. Anchors trained on them become stale.

        `since` is a time before which none of these items was stored, so that anything made earlier stays; empty if
        unknown. Raises UserInUse while a job uses the user's items, and StoreBusy in the same case as
        `Users.forget`.
        """
        return self._eraser.erase_items(user, task, items, since)

    def items_after(self, user_id: int, task: str, last_item: int) -> list[Item]:
        """The user's items with an id above `last_item`, by id."""
        return self._read_items(
            f"{_SELECT_ITEM} WHERE user_id = ? AND task = ? AND id > ? ORDER BY id", (user_id, task, last_item)
        )

    def search_items(
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
        """The user's `limit` items whose inputs match `text` best; with `fill`, recent ones follow if too few match.

        The item with id `exclude` is left out. `before` = (time, id) leaves out every item that is not strictly
        earlier, if both times are known. `among` restricts the search to these ids. `text` has no query syntax.
        """
        time, number = before if before is not None else (None, 0)
        values = {
            "user": user_id,
            "task": task,
            "exclude": exclude,
            "time": time,
            "id": number,
            "limit": _sql_limit(limit),
        }
        values["among"] = None if among is None else json.dumps(list(among))
        match = fts5_query(user_id, task, text)
        found = self._ranked_matches(text, values | {"match": match}) if match else []
        if fill and len(found) < limit:
            known = {item.id for item in found}
            latest = self._read_items(_SELECT_LATEST_ITEMS, values)
            found += itertools.islice((item for item in latest if item.id not in known), limit - len(found))
        return [item for item in found if item.input]  # in a pulled copy of a snapshot, items have labels but no texts

    def nearest_task(self, user_id: int, tasks: Sequence[str], text: str) -> str | None:
        """Of `tasks`, the task of the user's item whose input matches `text` best; None if no item matches."""
        found: dict[int, tuple[str, str]] = {}
        searched = 0
        for task in tasks:
            if match := fts5_query(user_id, task, text):
                values = {"user": user_id, "task": task, "match": match}
                values |= {"exclude": None, "time": None, "id": 0, "among": None}
                found |= {item_id: (task, words) for item_id, words in self._db.fetch_tuples(_SELECT_MATCHES, values)}
                searched += self._db.fetch_value(_COUNT_SEARCHED, values)
        best = rank_bm25(text, [(item_id, words) for item_id, (_, words) in found.items()], searched)
        return found[best[0]][0] if best else None

    def drop_kept_texts(self) -> None:
        """Clear this process's cache of word counts, which contains users' texts."""
        drop_kept_texts()

    def by_ids(self, item_ids: Sequence[int]) -> dict[int, Item]:
        """The existing items with these ids, by id."""
        found = self._read_items(_SELECT_BY_ID, {"item_ids": json.dumps(list(item_ids))})
        return {item.id: item for item in found}

    def require_stored(self, items: Iterable[Item]) -> None:
        """Raises UsersChanged if any of these items was removed. Call it while their users are held."""
        numbers = {item.id for item in items}
        if self._db.fetch_value(_COUNT_STORED, (json.dumps(list(numbers)),)) < len(numbers):
            raise UsersChanged("Items were removed while this job started.", hint="run the command again")

    def queries(self, user_id: int, task: str, limit: int | None = None) -> list[Query]:
        """The first `limit` of the user's held-out queries of a task, by time."""
        sql = f"{_SELECT_QUERY} WHERE user_id = ? AND task = ? ORDER BY time, id LIMIT ?"
        return [Query(*row) for row in self._db.fetch_tuples(sql, (user_id, task, _sql_limit(limit)))]

    def outputs_unique_to_user(self, user_id: int, task: str, texts: Sequence[str]) -> list[str]:
        """The texts among `texts` that this user alone has as outputs of items or queries of the task."""
        values = {"user": user_id, "task": task, "texts": json.dumps(list(texts))}
        return [text for (text,) in self._db.fetch_tuples(_SELECT_OUTPUTS_ONLY_OF, values)]

    def hash_histories(self, user_ids: Sequence[int], task: str) -> str:
        """`hash_items` of the whole histories of these users in a task, one history after another."""
        return self.hash_items(item for user_id in user_ids for item in self.recent_items(user_id, task))

    def hash_items(self, items: Iterable[Item]) -> str:
        """SHA-256 over key, input, output and time of these items, in this order."""
        import hashlib

        digest = hashlib.sha256()
        for item in items:
            digest.update(json.dumps([item.key, item.input, item.output, item.time]).encode() + b"\n")
        return digest.hexdigest()

    def _ranked_matches(self, text: str, values: dict[str, Any]) -> list[Item]:
        found = self._db.fetch_tuples(_SELECT_MATCHES, values)
        order = rank_bm25(text, found, self._db.fetch_value(_COUNT_SEARCHED, values))
        best = order if values["limit"] < 0 else order[: values["limit"]]
        items = self.by_ids(best)
        return [items[item_id] for item_id in best if item_id in items]

    def _read_items(self, sql: str, values: SqlParameters) -> list[Item]:
        return [Item(*row) for row in self._db.fetch_tuples(sql, values)]

    def _append_rows(self, table: str, rows: Iterable[UserItem]) -> tuple[int, int]:
        added, unchanged, faults = 0, 0, list[str]()
        source = iter(rows)
        with self._db.transaction():
            while batch := list(itertools.islice(source, INSERT_BATCH_SIZE)):
                new = self._insert_batch(table, batch)
                if new < len(batch):
                    faults += self._find_conflicts(table, batch)
                added, unchanged = added + new, unchanged + len(batch) - new
            if faults:
                more = f", and {len(faults) - 1:,} more" if len(faults) > 1 else ""
                raise BadInput(
                    f"{faults[0]}{more}; nothing was added.",
                    hint="a stored item cannot be changed: give the changed item a new id",
                    faults=tuple(faults[:MAX_FAULTS_SHOWN]),
                )
        return added, unchanged

    def _insert_batch(self, table: str, batch: list[UserItem]) -> int:
        rows = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(batch))
        sql = _INSERT_ROWS.format(table=table, answer=_answer_column(table), rows=rows)
        values = [(user_id, item.key, item.task, item.input, item.output, item.time) for user_id, item in batch]
        return self._db.execute_write(sql, list(itertools.chain.from_iterable(values))).rowcount

    def _find_conflicts(self, table: str, batch: list[UserItem]) -> Iterator[str]:
        sql = _SELECT_STORED.format(table=table, answer=_answer_column(table))
        for user_id, item in batch:
            stored = self._db.fetch_tuples(sql, (user_id, item.task, item.key))[0]
            if stored != (item.input, item.output, item.time):
                name = self._db.fetch_value("SELECT name FROM users WHERE id = ?", (user_id,))
                what = "item" if table == "items" else "query"
                yield f"{what} {quote_text(item.key)} of user {quote_text(name)} already exists with other content"


def _answer_column(table: str) -> str:
    return "output" if table == "items" else "gold"


def _sql_limit(limit: int | None) -> int:
    return -1 if limit is None else max(0, limit)
