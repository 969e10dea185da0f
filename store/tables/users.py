"""Users: their rows, groups, consent, and removal."""

from __future__ import annotations

import difflib
import json
import os
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mta_cli.errors import BadInput, Command, NotFound, did_you_mean
from store.columns import utc_now
from store.connection import Connection
from store.names import MAX_NAME_CHARS, check_name, normalise_name, quote_text
from store.records import STALE_FOR_GOOD, User

if TYPE_CHECKING:
    from store.erase import Erased, Eraser
    from store.tables.jobs import Jobs

_SELECT_USER = "SELECT id, name, can_anchor, created FROM users"

# A pulled copy of a snapshot has recipes without items.
_SELECT_USER_TASKS = """
SELECT task, sum(items) AS items, sum(queries) AS queries FROM (
    SELECT task, count(*) AS items, 0 AS queries FROM items WHERE user_id = :user GROUP BY task
    UNION ALL
    SELECT task, 0, count(*) FROM queries WHERE user_id = :user GROUP BY task
    UNION ALL
    SELECT task, 0, 0 FROM recipes WHERE user_id = :user
) GROUP BY task ORDER BY items DESC, task
"""

# Banks of evaluations serve no user.
_FROM_USER_ANCHORS = """FROM anchors JOIN banks ON banks.id = bank_id WHERE user_id = ? AND purpose = ''"""

StaleAnchor = tuple[str, int, int]
"""(bank's name, bank's version, anchor id)"""


Tombstone = tuple[str, int, int, str]
"""(forgotten at, history items, whether the user was an anchor, the uuid of their row)"""


class Users:
    """All users of the store."""

    def __init__(self, db: Connection, eraser: Eraser, jobs: Jobs) -> None:
        self._db, self._eraser, self._jobs = db, eraser, jobs

    def add(self, name: str, *, can_anchor: bool = True) -> User:
        """Add a user. Raises BadInput if the name is invalid or taken."""
        user, added = self.get_or_create_user(name, can_anchor=can_anchor)
        if not added:
            raise BadInput(f"A user {quote_text(user.name)} exists already.", hint="choose another name")
        return user

    def get_or_create_user(self, name: str, *, can_anchor: bool = True) -> tuple[User, bool]:
        """The user of this name, made if missing, and whether it was made. Raises BadInput for an invalid name.

        `can_anchor` applies to a new user only.
        """
        name = check_name(name)
        with self._db.transaction():
            found = self.find(name)
            if found is not None:
                return found, False
            values = {"name": name, "can_anchor": int(can_anchor), "created": utc_now(), "uuid": os.urandom(16).hex()}
            return self.by_id(self._db.insert_row("users", values)), True

    def get(self, name: str) -> User:
        """The user of this name. Raises NotFound, suggesting the nearest names."""
        found = self.find(name[: 4 * MAX_NAME_CHARS])
        if found is None:
            near = [quote_text(other) for other in self._similar_names(name[:MAX_NAME_CHARS])]
            hint = did_you_mean(near, (Command("user list"), " shows all users"))
            raise NotFound(f"There is no user {quote_text(name)}.", hint=hint)
        return found

    def find(self, name: str) -> User | None:
        """The user of this name; None if there is none."""
        found = self._db.fetch_tuples(f"{_SELECT_USER} WHERE name = ?", (unicodedata.normalize("NFC", name),))
        return user_from_row(found[0]) if found else None

    def by_id(self, user_id: int) -> User:
        """The user with this id. Raises NotFound."""
        found = self._db.fetch_tuples(f"{_SELECT_USER} WHERE id = ?", (user_id,))
        if not found:
            raise NotFound(
                f"There is no user number {user_id}; the user may have been removed.",
                hint=(Command("user list"), " shows all users"),
            )
        return user_from_row(found[0])

    def set_group(self, user_id: int, task: str, group: str) -> None:
        """Record the user's group in a task, as given by a file, replacing an earlier one."""
        self._db.execute_write(
            "REPLACE INTO user_groups (user_id, task, name) VALUES (?, ?, ?)", (user_id, task, group)
        )

    def groups(self, task: str) -> dict[int, str]:
        """The users' groups in a task, by user id; users without a group are left out."""
        return dict(self._db.fetch_tuples("SELECT user_id, name FROM user_groups WHERE task = ?", (task,)))

    def groups_of_user(self, user_id: int) -> dict[str, str]:
        """The user's groups, by task; tasks without a group are left out."""
        sql = "SELECT task, name FROM user_groups WHERE user_id = ? ORDER BY task"
        return dict(self._db.fetch_tuples(sql, (user_id,)))

    def find_by_uuid(self, uuid: str) -> User | None:
        """The user with this uuid, which all copies of a store share; None if there is none."""
        found = self._db.fetch_tuples(f"{_SELECT_USER} WHERE uuid = ?", (uuid,))
        return user_from_row(found[0]) if found else None

    def keep_tombstone(self, tombstone: Tombstone) -> None:
        """Record that a user was removed in another copy of the store, unless that is recorded already."""
        sql = """INSERT INTO tombstones (forgotten_at, items, had_anchor, user_uuid, erased) SELECT ?1, ?2, ?3, ?4, 1
        WHERE NOT EXISTS (SELECT 1 FROM tombstones WHERE user_uuid = ?4)"""
        self._db.execute_write(sql, tombstone)

    def names(self) -> list[str]:
        """The names of all users, sorted."""
        return [name for (name,) in self._db.fetch_tuples("SELECT name FROM users ORDER BY name")]

    def existing_names(self, names: Iterable[str]) -> set[str]:
        """The names among `names` that belong to users."""
        sql = "SELECT name FROM users WHERE name IN (SELECT value FROM json_each(?))"
        return {name for (name,) in self._db.fetch_tuples(sql, (json.dumps(list(names)),))}

    def users_with_items(self, task: str) -> list[tuple[User, int]]:
        """Users with items of a task and their number of items, in the order in which the users were added."""
        sql = """SELECT users.id, name, can_anchor, created, count(*)
        FROM users JOIN items ON user_id = users.id WHERE task = ? GROUP BY users.id ORDER BY users.id"""
        return [(user_from_row(row[:4]), row[4]) for row in self._db.fetch_tuples(sql, (task,))]

    def count_by_task(self) -> dict[str, int]:
        """The number of users with items of each task, by task."""
        sql = "SELECT task, count(*) FROM (SELECT DISTINCT user_id, task FROM items) GROUP BY task"
        return dict(self._db.fetch_tuples(sql))

    def tasks_of_user(self, user_id: int) -> list[tuple[str, int, int]]:
        """The tasks of the user's items, queries and recipes, as (task, items, queries), most items first."""
        return self._db.fetch_tuples(_SELECT_USER_TASKS, {"user": user_id})

    def set_can_anchor(self, user_id: int, can_anchor: bool) -> list[StaleAnchor]:
        """Record whether the user consents to serve others; returns the user's anchors that are stale now.

        Without consent all the user's anchors are stale, and banks lose the user's items as neighbours. With consent,
        an anchor is stale only if it was never trained, was refused, or was trained on a removed item. Raises UserInUse
        if consent is withdrawn while a job uses the user's items.
        """
        with self._db.transaction():
            user = self.by_id(user_id)
            if user.can_anchor and not can_anchor:
                self._jobs.require_unused(user.id, user.name)
            values = {"user": user_id, "can": int(can_anchor), "stale": int(not can_anchor)}
            self._db.execute_write("UPDATE users SET can_anchor = :can WHERE id = :user", values)
            trained = "(:stale OR digest IS NOT NULL OR status = 'building')"
            mine = f"id IN (SELECT anchors.id {_FROM_USER_ANCHORS} AND {trained})".replace("?", ":user")
            self._db.execute_write(
                f"UPDATE anchors SET stale = :stale WHERE {mine} AND stale < {STALE_FOR_GOOD}", values
            )
            if can_anchor:
                return []
            items = "SELECT id FROM items WHERE user_id = ?"
            self._db.execute_write(f"DELETE FROM neighbours WHERE item_id IN ({items})", (user_id,))
            sql = f"SELECT banks.name, version, anchors.id {_FROM_USER_ANCHORS} ORDER BY anchors.id"
            return self._db.fetch_tuples(sql, (user_id,))

    def forget(self, user_id: int) -> Erased:
        """Remove a user from database, log and files. Anchors trained on the user stay and become stale.

        Raises NotFound, UserInUse while a job uses the user's items, and StoreBusy if the rows are deleted but another
        reading process keeps their bytes in the log. Those bytes are overwritten when the store is next opened without
        another reader.
        """
        return self._eraser.erase_user(self.by_id(user_id))

    def _similar_names(self, name: str) -> list[str]:
        names = self.names()
        alike = [other for other in names if normalise_name(other) == normalise_name(name)]
        by_case = {other.casefold(): other for other in names}
        near = difflib.get_close_matches(name.casefold(), by_case, n=3, cutoff=0.6)
        part = f" {name.casefold()}"
        begun = [other for other in names if part in f" {other.casefold()}"] if name.strip() else []
        return list(dict.fromkeys([*alike, *(by_case[other] for other in near), *begun]))[:3]


def user_from_row(row: tuple[Any, ...]) -> User:
    """The user in a row with the columns id, name, can_anchor and created."""
    return User(row[0], row[1], bool(row[2]), row[3])
