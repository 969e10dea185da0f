"""Profiles: one float32 sum vector for each user, task and embedder. Knows no vectors, only their bytes."""

from store.connection import Connection
from store.models import Profile

_PROFILE = "SELECT user_id, task, embedder, total, items, last_item FROM profiles"


class Profiles:
    """The profiles of all users."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def get(self, user_id: int, task: str, embedder: str) -> Profile | None:
        """The user's profile for a task by an embedder (its fingerprint), if there is one."""
        sql = f"{_PROFILE} WHERE user_id = ? AND task = ? AND embedder = ?"
        row = self._db.row(sql, (user_id, task, embedder))
        return Profile(**row) if row is not None else None

    def put(self, profile: Profile) -> None:
        """Store a profile in place of the earlier one."""
        values = (profile.user_id, profile.task, profile.embedder, profile.total, profile.items, profile.last_item)
        sql = "REPLACE INTO profiles (user_id, task, embedder, total, items, last_item) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.write(sql, values)

    def all(self, task: str, embedder: str) -> list[Profile]:
        """Every user's profile for a task by an embedder, in the order in which the users came."""
        sql = f"{_PROFILE} WHERE task = ? AND embedder = ? ORDER BY user_id"
        return [Profile(**row) for row in self._db.rows(sql, (task, embedder))]
