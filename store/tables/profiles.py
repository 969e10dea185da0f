"""Profiles: one float32 vector, stored as bytes, for each user, task and embedder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from store.connection import Connection
from store.records import Profile

MAX_USERS_PER_QUERY = 500  # users in one query; the most parameters that a query may have depends on SQLite's build
_SELECT_PROFILE = "SELECT user_id, task, embedder, total, items, last_item FROM profiles"
_SELECT_TOTAL = "SELECT user_id, total FROM profiles"
_KEY_CONDITION = "user_id = ? AND task = ? AND embedder = ?"


class Profiles:
    """The profiles of all users."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def get(self, user_id: int, task: str, embedder: str) -> Profile | None:
        """The user's profile for a task by an embedder (its fingerprint), if there is one."""
        row = self._db.fetch_dict(f"{_SELECT_PROFILE} WHERE {_KEY_CONDITION}", (user_id, task, embedder))
        return Profile(**row) if row is not None else None

    def save_profile(self, profile: Profile) -> None:
        """Store a profile, replacing the earlier one."""
        values = (profile.user_id, profile.task, profile.embedder, profile.total, profile.items, profile.last_item)
        sql = "REPLACE INTO profiles (user_id, task, embedder, total, items, last_item) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.execute_write(sql, values)

    def profile_totals(self, task: str, embedder: str, users: Sequence[int] | None = None) -> list[tuple[int, bytes]]:
        """Pairs of user id and `Profile.total` for a task and an embedder (its fingerprint), by user id.

        Of all users, or only of `users`.
        """
        sql = f"{_SELECT_TOTAL} WHERE task = ? AND embedder = ?"
        if users is None:
            return self._db.fetch_tuples(f"{sql} ORDER BY user_id", (task, embedder))
        chosen, found = sorted(set(users)), []
        for some in (
            chosen[start : start + MAX_USERS_PER_QUERY] for start in range(0, len(chosen), MAX_USERS_PER_QUERY)
        ):
            places = ", ".join("?" * len(some))
            found += self._db.fetch_tuples(f"{sql} AND user_id IN ({places}) ORDER BY user_id", (task, embedder, *some))
        return found

    def iter_profile_totals(self, task: str, embedder: str, size: int) -> Iterator[list[tuple[int, bytes]]]:
        """Yields the rows of `profile_totals` for all users in batches of at most `size`."""
        sql = f"{_SELECT_TOTAL} WHERE user_id > ? AND task = ? AND embedder = ? ORDER BY user_id LIMIT ?"
        last = -1
        while page := self._db.fetch_tuples(sql, (last, task, embedder, size)):
            yield page
            last = page[-1][0]

    def version_stamp(self, task: str, embedder: str) -> tuple[int, int, int, int]:
        """Four numbers, of which at least one changes when any of these profiles is stored or removed."""
        count, newest = self._db.fetch_tuples(
            "SELECT count(*), coalesce(max(rowid), 0) FROM profiles WHERE task = ? AND embedder = ?", (task, embedder)
        )[0]
        # A profile that is stored again gets the highest row number. If it had that already, the two sums change.
        found = self._db.fetch_tuples("SELECT items, last_item FROM profiles WHERE rowid = ?", (newest,))
        items, last_item = found[0] if found else (0, 0)
        return count, newest, items, last_item
