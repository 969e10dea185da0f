"""Removes a user, or items of a user: rows, full-text index, files, and the bytes of deleted rows.

Foreign keys delete the dependent rows. Only the errors of runs may contain a user's name; all other rows refer to users
by id. Anchors that were trained on a removed user stay and become stale, because other users' models depend on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from store.columns import dump_json, load_json_columns, utc_now
from store.connection import Connection, SqlParameters
from store.database_copy import remove_databases_saved_before_migration
from store.files import AdapterFiles
from store.names import FORGOTTEN_NAME, quote_text
from store.records import REFUSED_USERS_KEY, STALE_FOR_GOOD, Item, User
from store.tables.adapters import Adapters
from store.tables.jobs import Jobs
from store.tables.users import StaleAnchor

# A bank of an evaluation answers no user. If it was made from the removed data, it is deleted and not marked stale.
_EVAL_BANKS = """DELETE FROM banks WHERE purpose = 'eval' AND id IN (
    SELECT bank_id FROM eval_banks JOIN eval_people USING (evaluation_id, fold) WHERE user_id = :user AND role = 'bank'
"""
_OF_TASK = "user_id = :user AND task = :task"
# Evaluations that may have used the items: created at or after `since`, or with a run that ended then. A run
# without an `ended` time was killed or is still running, so it counts too.
_LATER_EVALUATIONS = """SELECT id FROM evaluations WHERE task = :task AND (created >= :since OR EXISTS (
    SELECT 1 FROM runs WHERE evaluation_id = evaluations.id AND (ended IS NULL OR ended >= :since)
))"""
_DELETIONS_WITH_ITEMS = (
    f"{_EVAL_BANKS} AND evaluation_id IN ({_LATER_EVALUATIONS}))",
    # An evaluation's answers are deleted too, because its prompts contain the items.
    f"DELETE FROM predictions WHERE user_id = :user AND evaluation_id IN ({_LATER_EVALUATIONS})",
    f"DELETE FROM cells WHERE user_id = :user AND evaluation_id IN ({_LATER_EVALUATIONS})",
    f"DELETE FROM stacks WHERE {_OF_TASK} AND created >= :since",
    f"DELETE FROM recipes WHERE {_OF_TASK} AND created >= :since",
    f"DELETE FROM profiles WHERE {_OF_TASK} AND last_item >= :first",
    f"DELETE FROM items WHERE {_OF_TASK} AND id IN (SELECT value FROM json_each(:items))",
)
_ANCHORS = "FROM anchors JOIN banks ON banks.id = bank_id"
_TRAINED_ANCHORS = f"""{_ANCHORS} JOIN adapters USING (digest)
WHERE user_id = :user AND banks.task = :task AND purpose = '' AND adapters.created >= :since"""


@dataclass(frozen=True)
class Erased:
    """The digests of the adapters that were removed, and the anchors that are stale now."""

    adapters_removed: list[str]
    stale_anchors: list[StaleAnchor]


class Eraser:
    """Removes users and items from a store."""

    def __init__(self, db: Connection, adapters: Adapters, files: AdapterFiles, jobs: Jobs) -> None:
        self._db, self._adapters, self._files, self._jobs = db, adapters, files, jobs

    def erase_user(self, user: User) -> Erased:
        """Remove a user from database, log and files; returns what was removed and which anchors are stale now.

        Raises UserInUse while a job uses the user's items, and StoreBusy in the same case as `Users.forget`.
        """
        values = {"user": user.id}
        with self._db.transaction():
            self._jobs.require_unused(user.id, user.name)
            self._db.execute_write(f"{_EVAL_BANKS})", values)
            stale = self._stale_anchors(f"{_ANCHORS} WHERE user_id = :user", values)
            self._db.execute_write("UPDATE anchors SET stale = 1 WHERE user_id = :user", values)
            tombstone = """INSERT INTO tombstones (forgotten_at, items, had_anchor, user_uuid)
            SELECT ?, (SELECT count(*) FROM items WHERE user_id = users.id), ?, uuid FROM users WHERE id = ?"""
            self._db.execute_write(tombstone, (utc_now(), int(bool(stale)), user.id))
            self._db.execute_write("DELETE FROM users WHERE id = :user", values)
            self._redact_name(user.name)
            self._remove_from_refused_users(user.id)
            removed = self._adapters.remove_unreferenced()
            self._db.after_commit(self.purge_deleted_bytes)
        return Erased(removed, stale)

    def erase_items(self, user: User, task: str, items: Sequence[Item], since: str) -> Erased:
        """Remove a user's `items`, at least one, of a task, and what was made from them at or after the time `since`.

        Returns what was removed and which anchors are stale now. `Items.remove_items` explains `since` and the errors.
        """
        numbers = [item.id for item in items]
        values = {"user": user.id, "task": task, "since": since}
        values |= {"first": min(numbers), "items": json.dumps(numbers)}
        with self._db.transaction():
            self._jobs.require_unused(user.id, user.name)
            stale = self._stale_anchors(_TRAINED_ANCHORS, values)
            ours = f"UPDATE anchors SET stale = {STALE_FOR_GOOD} WHERE id IN (SELECT anchors.id {_TRAINED_ANCHORS})"
            for sql in (ours, *_DELETIONS_WITH_ITEMS):
                self._db.execute_write(sql, values)
            removed = self._adapters.remove_unreferenced()
            # Until this row says `erased`, every opening of the store tries to overwrite the deleted bytes.
            tombstone = {"forgotten_at": utc_now(), "items": len(numbers), "had_anchor": int(bool(stale))}
            self._db.insert_row("tombstones", tombstone)
            self._db.after_commit(self.purge_deleted_bytes)
        return Erased(removed, stale)

    def purge_deleted_bytes(self) -> None:
        """Overwrite the bytes of removed users and items, if any are left. Raises StoreBusy while another process
        reads.

        If the process crashes or another one is reading, the next opening of the store does it.
        """
        last = self._db.fetch_value("SELECT max(id) FROM tombstones WHERE NOT erased")
        if last is None:
            return
        self._files.remove_all_checkpoints()  # a checkpoint of an unfinished training may be made from removed items
        remove_databases_saved_before_migration(self._db.root)
        self._files.remove_old_orphans({digest for (digest,) in self._db.fetch_tuples("SELECT digest FROM adapters")})
        self._db.execute_write("INSERT INTO items_fts (items_fts) VALUES ('optimize')")
        self._db.vacuum()
        # Only up to `last`: another process may have removed more rows meanwhile, whose words are still in the index.
        self._db.execute_write("UPDATE tombstones SET erased = 1 WHERE id <= ?", (last,))

    def _stale_anchors(self, which: str, values: SqlParameters) -> list[StaleAnchor]:
        return self._db.fetch_tuples(f"SELECT banks.name, version, anchors.id {which} ORDER BY anchors.id", values)

    def _remove_from_refused_users(self, user_id: int) -> None:
        for row in self._db.fetch_dicts("SELECT id, config FROM banks WHERE instr(config, ?)", (REFUSED_USERS_KEY,)):
            config = load_json_columns(row, "config")["config"]
            if user_id in config.get(REFUSED_USERS_KEY, ()):
                config[REFUSED_USERS_KEY].remove(user_id)
                self._db.execute_write("UPDATE banks SET config = ? WHERE id = ?", (dump_json(config), row["id"]))

    def _redact_name(self, name: str) -> None:
        """Replace the name in runs' errors, but not where it is a part of another user's longer name."""
        for form in _forms_in_messages(name):
            rows = self._db.fetch_tuples("SELECT id, error FROM runs WHERE instr(error, ?)", (form,))
            if not rows:
                continue
            pattern = name_pattern(form, self._names_containing(form))
            changed = [(pattern.sub(lambda found: found[1] or FORGOTTEN_NAME, text), run) for run, text in rows]
            self._db.execute_write_many("UPDATE runs SET error = ? WHERE id = ?", changed)

    def _names_containing(self, form: str) -> list[str]:
        """Other users' names that contain `form`, as messages write them: escaping can make a name contain it."""
        names = self._db.fetch_tuples("SELECT name FROM users")
        return [written for (each,) in names for written in _forms_in_messages(each) if form in written]


def _forms_in_messages(name: str) -> list[str]:
    """The forms in which messages contain a name: as it is, escaped, and cut."""
    return list(dict.fromkeys((name, repr(name)[1:-1], quote_text(name)[1:-1])))


def name_pattern(name: str, longer: Sequence[str] = ()) -> re.Pattern[str]:
    """A pattern that matches `name` as a whole word; its group 1 matches the `longer` names, which are kept."""
    kept = "|".join(_whole_word(each) for each in sorted(longer, key=len, reverse=True))
    return re.compile(f"({kept or '(?!)'})|{_whole_word(name)}")


def _whole_word(name: str) -> str:
    before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
    return before + re.escape(name) + after
