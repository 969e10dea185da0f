"""Pages of users, filtered and sorted, for a table of up to a million rows. Only reads.

A page in the order of names is read from the names' own index. Any other order or filter reads all users once. The
latest sorted ids (8 bytes a user) are cached until the store changes.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store.columns import load_boolean_columns
from store.connection import Connection
from store.queries.user_filter import (
    SqlConditions,
    UserFilter,
    add_column_conditions,
    add_name_conditions,
    add_task_conditions,
    parse_user_filter,
)
from store.queries.user_row import (
    ROW_COLUMNS,
    SORT_COLUMNS,
    SUMMARY_COLUMNS,
    USER_STATUSES,
    Column,
    UserRow,
    UserSummary,
    status_sql,
)

MAX_PAGE_ROWS = 500
"""The most rows that are read at once, in a page or for summaries."""

MAX_CACHED_ORDERS = 2  # sorted ids of the filtered users, for pages, and of all users, to count them

# A user's status depends on the newest ready version of each bank, on each base.
_WITH_CURRENT_BANKS = """current AS MATERIALIZED (
    SELECT id FROM banks AS b WHERE status = 'ready' AND purpose = '' AND (:task IS NULL OR task = :task)
        AND version = (
            SELECT max(version) FROM banks WHERE name = b.name AND base = b.base AND status = 'ready' AND purpose = ''
        )
)"""

# `+bank_id` makes SQLite search by user, because a bank may contain all users. Beside max(), SQLite takes the other
# columns from the row with the maximum.
_JOIN_SUBQUERIES = {
    "i": "SELECT user_id, count(*) AS n FROM items {where} GROUP BY user_id",
    "q": "SELECT user_id, count(*) AS n FROM queries {where} GROUP BY user_id",
    "s": """SELECT user_id, sum(bytes) AS bytes, max(bank_id), heldout_before - heldout_after AS change FROM stacks
        WHERE +bank_id IN current {and_} GROUP BY user_id""",
    "r": """SELECT user_id, sum(bytes) AS bytes, max(bank_id), bytes / 12 AS anchors FROM recipes
        WHERE +bank_id IN current {and_} GROUP BY user_id""",
    "a": "SELECT DISTINCT user_id FROM anchors WHERE bank_id IN current AND user_id IS NOT NULL",
}
# The best status on each base. A base without a record in the store is named by its fingerprint.
_SELECT_STATUS_BY_BASE = f"""WITH {_WITH_CURRENT_BANKS}, made AS (
    SELECT user_id, bank_id, 3 AS status FROM stacks WHERE +bank_id IN current AND user_id {{among}}
    UNION ALL SELECT user_id, bank_id, 2 FROM recipes WHERE +bank_id IN current AND user_id {{among}}
) SELECT user_id, coalesce(bases.name, base), max(made.status) FROM made JOIN banks ON banks.id = bank_id
LEFT JOIN bases ON fingerprint = base GROUP BY user_id, base ORDER BY user_id, max(bank_id) DESC"""
# For all users at once, a test for membership in a set is three times as fast as a join.
_STATUS_SQL = status_sql(
    adapted="users.id IN (SELECT user_id FROM stacks WHERE +bank_id IN current {and_})",
    fused="users.id IN (SELECT user_id FROM recipes WHERE +bank_id IN current {and_})",
    anchor="users.id IN (SELECT user_id FROM anchors WHERE bank_id IN current)",
)
# EXISTS needs a few index look-ups per user, where a set of all users with the task would read all items. Recipes count
# because a pulled copy of a snapshot has recipes without items.
_HAS_TASK = """(EXISTS (SELECT 1 FROM items WHERE user_id = users.id AND task = :task)
    OR EXISTS (SELECT 1 FROM queries WHERE user_id = users.id AND task = :task)
    OR EXISTS (SELECT 1 FROM recipes WHERE user_id = users.id AND task = :task))"""
_SELECT_MAIN_TASK = """(SELECT task FROM (
    SELECT task, count(*) AS items, 0 AS queries FROM items WHERE user_id = users.id GROUP BY task
    UNION ALL
    SELECT task, 0, count(*) FROM queries WHERE user_id = users.id GROUP BY task
    UNION ALL
    SELECT task, 0, 0 FROM recipes WHERE user_id = users.id
) GROUP BY task ORDER BY sum(items) DESC, sum(queries) DESC, task LIMIT 1)"""


@dataclass(frozen=True)
class _TableQuery:
    """The filter and the order of a page; the key of the cached orders."""

    filter: str
    sort: str
    descending: bool
    task: str | None


class UserTable:
    """All users, filtered, sorted and read in pages."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._state: tuple[int, ...] = ()
        self._cached_orders: dict[_TableQuery, array[int]] = {}

    def user_page(
        self,
        filter: str = "",
        sort: str = "name",
        descending: bool = False,
        offset: int = 0,
        limit: int = 50,
        task: str | None = None,
    ) -> list[UserRow]:
        """At most `limit` (and `MAX_PAGE_ROWS`) users from index `offset` on; ties by name, users without a value last.

        `filter` is text: words of the name, their case ignored, and any of `status:adapted`, `task:NAME`, `items>5`,
        `queries=0`, `anchors<4`, `bytes>=100`, `change>0`; all must hold. `task` restricts the rows to users with
        items, queries or a recipe of that task, and the columns to that task. Raises ValueError for a `sort` not in
        `SORT_COLUMNS`.
        """
        question = _make_table_query(filter, sort, descending, task)
        offset, limit = max(0, offset), max(0, min(limit, MAX_PAGE_ROWS))
        numbers = self._page_user_ids(question, offset, limit)
        return [UserRow(**row) for _, row in self._load_columns(ROW_COLUMNS, numbers, task)]

    def count_users_matching(
        self, filter: str = "", task: str | None = None, *, sort: str = "name", descending: bool = False
    ) -> int:
        """How many users match. Given `sort` and `descending` of the page, the count reuses the ids read for it."""
        question = _make_table_query(filter, sort, descending, task)
        wanted = parse_user_filter(filter)
        if task is not None or not wanted.is_name_only:
            return len(self._ordered_user_ids(question, wanted))
        where = _name_filter(wanted)
        return int(self._db.fetch_value(f"SELECT count(*) FROM users {_where_sql(where.sql)}", where.values))

    def index_of_user(
        self, name: str, filter: str = "", sort: str = "name", descending: bool = False, task: str | None = None
    ) -> int | None:
        """The index of a user in the order of `user_page`, from 0; None if no such user matches the filter."""
        question, wanted = _make_table_query(filter, sort, descending, task), parse_user_filter(filter)
        number = self._db.fetch_value("SELECT id FROM users WHERE name = ?", (name,))
        if number is None:
            return None
        if _needs_full_scan(question, wanted):
            order = self._ordered_user_ids(question, wanted)
            return order.index(number) if number in order else None
        where = _name_filter(wanted)
        own, before = where.bind_value(name), ">" if descending else "<"
        if not self._db.fetch_value(f"SELECT 1 FROM users {_where_sql([*where.sql, f'name = {own}'])}", where.values):
            return None
        sql = f"SELECT count(*) FROM users {_where_sql([*where.sql, f'name {before} {own}'])}"
        return int(self._db.fetch_value(sql, where.values))

    def summaries(self, task: str | None = None, filter: str = "", limit: int | None = None) -> Iterator[UserSummary]:
        """Yields the summaries of at most `limit` users, by name. They are read in pages, so the first come early.

        `filter` is as for `user_page`. With `task`, the summaries are about that task, and only of users with items,
        queries or a recipe of it. Users who are added or removed while the pages are read may be missing.
        """
        question = _make_table_query(filter, "name", False, task)
        order = self._ordered_user_ids(question, parse_user_filter(filter))[:limit]
        for start in range(0, len(order), MAX_PAGE_ROWS):
            page = order[start : start + MAX_PAGE_ROWS]
            bases = self._status_by_base(page, task)
            sql = "SELECT user_id, task, name FROM user_groups WHERE user_id IN (SELECT value FROM json_each(?))"
            groups = {tuple(key): name for *key, name in self._db.fetch_tuples(sql, (json.dumps(list(page)),))}
            for number, row in self._load_columns(SUMMARY_COLUMNS, page, task):
                row |= {"bases": bases.get(number, {}), "group": groups.get((number, row["task"]))}
                yield UserSummary(**load_boolean_columns(row, "can_anchor"))

    def tasks_with_user_counts(self) -> list[tuple[str, int]]:
        """Every task with items, queries or recipes, and how many users have some; most users first."""
        sql = """SELECT task, count(*) AS user_count FROM (
            SELECT user_id, task FROM items UNION SELECT user_id, task FROM queries
            UNION SELECT user_id, task FROM recipes
        ) GROUP BY task ORDER BY user_count DESC, task"""
        return self._db.fetch_tuples(sql)

    def _page_user_ids(self, question: _TableQuery, offset: int, limit: int) -> Sequence[int]:
        wanted = parse_user_filter(question.filter)
        if _needs_full_scan(question, wanted):
            return self._ordered_user_ids(question, wanted)[offset : offset + limit]
        where = _name_filter(wanted)
        direction = "DESC" if question.descending else "ASC"
        sql = f"SELECT id FROM users {_where_sql(where.sql)} ORDER BY name {direction} LIMIT :limit OFFSET :offset"
        found = self._db.fetch_tuples(sql, {**where.values, "limit": limit, "offset": offset})
        return [number for (number,) in found]

    def _ordered_user_ids(self, question: _TableQuery, wanted: UserFilter) -> array[int]:
        state = self._db.fetch_tuples("SELECT data_version, total_changes() FROM pragma_data_version")[0]
        if state != self._state:
            self._state, self._cached_orders = state, {}
        if question not in self._cached_orders:
            sql, values = _full_scan_sql(question, wanted)
            found = array("q", (number for (number,) in self._db.fetch_tuples(sql, values)))
            self._cached_orders = dict([*self._cached_orders.items(), (question, found)][-MAX_CACHED_ORDERS:])
        return self._cached_orders[question]

    def _status_by_base(self, numbers: Sequence[int], task: str | None) -> dict[int, dict[str, str]]:
        """By user id: the user's status on each base on which they have a recipe or stack, newest bank first."""
        among = "IN (SELECT value FROM json_each(:numbers))"
        values = {"task": task, "numbers": json.dumps(list(numbers))}
        found: dict[int, dict[str, str]] = {}
        for number, base, status in self._db.fetch_tuples(_SELECT_STATUS_BY_BASE.format(among=among), values):
            found.setdefault(number, {})[base] = USER_STATUSES[status]
        return found

    def _load_columns(
        self, columns: Mapping[str, Column], numbers: Sequence[int], task: str | None
    ) -> list[tuple[int, dict[str, Any]]]:
        """(id, row) of the users with these ids, in this order; a row has these columns and the task."""
        if not numbers:
            return []
        among = "IN (SELECT value FROM json_each(:numbers))"
        sql = f"{_select_users(columns, task, f'user_id {among}')} WHERE users.id {among}"
        values = {"task": task, "numbers": json.dumps(list(numbers))}
        found = {
            row.pop("id"): {**row, "status": USER_STATUSES[row["status"]]} for row in self._db.fetch_dicts(sql, values)
        }
        return [(number, found[number]) for number in numbers if number in found]


def _select_users(columns: Mapping[str, Column], task: str | None, among: str = "") -> str:
    """A query for these columns and the `task` of all users; the condition `among` restricts the joined rows."""
    listed = ", ".join(["users.id AS id", *(f"{column.sql} AS {name}" for name, column in columns.items())])
    main_task = ":task" if task is not None else _SELECT_MAIN_TASK
    joins = _join_sql(set(_JOIN_SUBQUERIES), task, among)
    return f"WITH {_WITH_CURRENT_BANKS} SELECT {listed}, {main_task} AS task FROM users {joins}"


def _make_table_query(filter: str, sort: str, descending: bool, task: str | None) -> _TableQuery:
    if sort not in SORT_COLUMNS:
        raise ValueError(f"users are sorted by one of {', '.join(SORT_COLUMNS)}, not by {sort!r}")
    return _TableQuery(filter, sort, descending, task)


def _needs_full_scan(question: _TableQuery, wanted: UserFilter) -> bool:
    return question.sort != "name" or question.task is not None or not wanted.is_name_only


def _full_scan_sql(question: _TableQuery, wanted: UserFilter) -> tuple[str, dict[str, object]]:
    """The query for the sorted ids of all matching users; joins only what filter and order use."""
    columns = {name: column.sql for name, column in ROW_COLUMNS.items()}
    columns["status"] = _STATUS_SQL.format(and_="" if question.task is None else "AND task = :task")
    where = SqlConditions([_HAS_TASK] if question.task is not None else [])
    add_name_conditions(wanted, where)
    add_task_conditions(wanted, where)
    add_column_conditions(wanted, columns, where)
    needed = set("".join(ROW_COLUMNS[name].joins for name in (question.sort, *wanted.required_columns)))
    direction = "DESC" if question.descending else "ASC"
    sql = f"""WITH {_WITH_CURRENT_BANKS} SELECT users.id FROM users
    {_join_sql(needed, question.task)} {_where_sql(where.sql)}
    ORDER BY {columns[question.sort]} {direction} NULLS LAST, users.name"""
    return sql, {**where.values, "task": question.task}


def _join_sql(parts: set[str], task: str | None, among: str = "") -> str:
    """The SQL of the joins with the keys `parts`, for all users or those that the condition `among` selects."""
    conditions = [*(["task = :task"] if task is not None else []), *([among] if among else [])]
    and_ = "".join(f" AND {condition}" for condition in conditions)
    made = {key: _JOIN_SUBQUERIES[key].format(where=_where_sql(conditions), and_=and_) for key in sorted(parts)}
    return " ".join(f"LEFT JOIN ({sql}) AS {key} ON {key}.user_id = users.id" for key, sql in made.items())


def _name_filter(wanted: UserFilter) -> SqlConditions:
    where = SqlConditions()
    add_name_conditions(wanted, where)
    return where


def _where_sql(conditions: Sequence[str]) -> str:
    return f"WHERE {' AND '.join(conditions)}" if conditions else ""
