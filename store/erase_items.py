"""Erases single history items of a user: their rows, what was made from them, and the bytes of both.

What others' models learned from an item stays, and is named: an anchor that was trained on it becomes stale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from store.columns import utc_now
from store.connection import Connection
from store.erase import UserEraser
from store.records import STALE_FOR_GOOD, Item, User
from store.tables.adapters import Adapters
from store.tables.jobs import Jobs

_OF_TASK = "user_id = :user AND task = :task"
# Evaluations that were at work when the items were there. Without an end, a run was killed.
_LATER_EVALUATIONS = """SELECT id FROM evaluations WHERE task = :task AND (created >= :since OR EXISTS (
    SELECT 1 FROM runs WHERE evaluation_id = evaluations.id AND (ended IS NULL OR ended >= :since)
))"""
_DELETIONS = (
    # Banks of evaluations serve no user, so those made from the items are deleted whole.
    f"""DELETE FROM banks WHERE purpose = 'eval' AND id IN (
        SELECT bank_id FROM eval_banks JOIN eval_people USING (evaluation_id, fold)
        WHERE user_id = :user AND role = 'bank' AND evaluation_id IN ({_LATER_EVALUATIONS})
    )""",
    # Prompts of evaluations show items.
    f"DELETE FROM predictions WHERE user_id = :user AND evaluation_id IN ({_LATER_EVALUATIONS})",
    f"DELETE FROM cells WHERE user_id = :user AND evaluation_id IN ({_LATER_EVALUATIONS})",
    f"DELETE FROM stacks WHERE {_OF_TASK} AND created >= :since",
    f"DELETE FROM recipes WHERE {_OF_TASK} AND created >= :since",
    f"DELETE FROM profiles WHERE {_OF_TASK} AND last_item >= :first",
    f"DELETE FROM items WHERE {_OF_TASK} AND id IN (SELECT value FROM json_each(:items))",
)
_TRAINED_ANCHORS = """FROM anchors JOIN banks ON banks.id = bank_id JOIN adapters USING (digest)
WHERE user_id = :user AND banks.task = :task AND purpose = '' AND adapters.created >= :since"""


@dataclass(frozen=True)
class RemovedItems:
    """What was removed with items. `stale_anchors` are (bank, version, anchor id): those trained on the items."""

    adapters_removed: list[str]
    stale_anchors: list[tuple[str, int, int]]


class ItemEraser:
    """Removes items from a store."""

    def __init__(self, db: Connection, adapters: Adapters, eraser: UserEraser, jobs: Jobs) -> None:
        self._db, self._adapters, self._eraser, self._jobs = db, adapters, eraser, jobs

    def erase_items(self, user: User, task: str, items: Sequence[Item], since: str) -> RemovedItems:
        """See `Items.remove_items`."""
        numbers = [item.id for item in items]
        values = {"user": user.id, "task": task, "since": since}
        values |= {"first": min(numbers), "items": json.dumps(numbers)}
        with self._db.transaction():
            self._jobs.require_unused(user.id, user.name)
            found = f"SELECT banks.name, version, anchors.id {_TRAINED_ANCHORS} ORDER BY anchors.id"
            stale = self._db.fetch_tuples(found, values)
            ours = f"UPDATE anchors SET stale = {STALE_FOR_GOOD} WHERE id IN (SELECT anchors.id {_TRAINED_ANCHORS})"
            for sql in (ours, *_DELETIONS):
                self._db.execute_write(sql, values)
            removed = self._adapters.remove_unreferenced()
            # The row of a removal: until it says `erased`, every opening of the store tries to overwrite the bytes.
            tombstone = {"forgotten_at": utc_now(), "items": len(numbers), "had_anchor": int(bool(stale))}
            self._db.insert_row("tombstones", tombstone)
            self._db.after_commit(self._eraser.purge_deleted_bytes)
        return RemovedItems(removed, stale)
