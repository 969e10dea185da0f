"""Erases a user: rows, full-text index, their name in errors of other runs, files, and the bytes of deleted rows.

Rows follow their foreign keys. Errors of runs are the only texts that may name a user; all else refers to users by key,
or, in a bank's list of refused users, by id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from store.columns import dump_json, load_json_columns, utc_now
from store.connection import Connection
from store.database_copy import remove_saved_databases
from store.files import AdapterFiles
from store.names import FORGOTTEN_NAME, quote_text
from store.queries.dependents import find_dependent_users
from store.records import REFUSED_USERS_KEY, User
from store.tables.adapters import Adapters
from store.tables.jobs import Jobs
from store.tables.users import ForgetResult

# Banks of evaluations serve no user, so those made from this user are deleted whole.
_DELETE_EVAL_BANKS = """DELETE FROM banks WHERE id IN (
    SELECT bank_id FROM eval_banks JOIN eval_people USING (evaluation_id, fold) WHERE user_id = ? AND role = 'bank'
) AND purpose = 'eval'"""


class UserEraser:
    """Removes users from a store."""

    def __init__(self, db: Connection, adapters: Adapters, files: AdapterFiles, jobs: Jobs) -> None:
        self._db, self._adapters, self._files, self._jobs = db, adapters, files, jobs

    def erase_user(self, user: User) -> ForgetResult:
        """See `Users.forget`."""
        with self._db.transaction():
            self._jobs.require_unused(user.id, user.name)
            self._db.execute_write(_DELETE_EVAL_BANKS, (user.id,))
            anchors = self._anchors_of_user(user.id)
            stale, rest = [anchor[1:] for anchor in anchors], self._dependents_of_anchors(user, anchors)
            self._db.execute_write("UPDATE anchors SET stale = 1 WHERE user_id = ?", (user.id,))
            self._add_tombstone(user.id, had_anchor=bool(stale))
            self._db.execute_write("DELETE FROM users WHERE id = ?", (user.id,))
            self._redact_name(user.name)
            self._remove_from_refused(user.id)
            removed = self._adapters.remove_unreferenced()
            self._db.after_commit(self.purge_deleted_bytes)
        banks = list(dict.fromkeys(f"{name} v{version}" for name, version, _ in stale))
        return ForgetResult(user.name, removed, stale, banks, rest)

    def purge_deleted_bytes(self) -> None:
        """Overwrite the bytes of forgotten users, if any are left. Raises StoreBusy while another process reads.

        After a crash, or beside a reader, the next opening of the store does it.
        """
        last = self._db.fetch_value("SELECT max(id) FROM tombstones WHERE NOT erased")
        if last is None:
            return
        self._files.drop_all_checkpoints()  # an unfinished training may use their items
        remove_saved_databases(self._db.root)
        self._files.drop_orphans({digest for (digest,) in self._db.fetch_tuples("SELECT digest FROM adapters")})
        self._db.execute_write("INSERT INTO items_fts (items_fts) VALUES ('optimize')")
        self._db.vacuum()
        # Others may have removed more since; their words may still be in the index.
        self._db.execute_write("UPDATE tombstones SET erased = 1 WHERE id <= ?", (last,))

    def _anchors_of_user(self, user_id: int) -> list[tuple[int, str, int, int]]:
        """The user's anchors: (bank id, bank, version, anchor id)."""
        sql = """SELECT banks.id, banks.name, version, anchors.id FROM anchors JOIN banks ON banks.id = bank_id
        WHERE user_id = ? ORDER BY anchors.id"""
        return self._db.fetch_tuples(sql, (user_id,))

    def _dependents_of_anchors(
        self, user: User, anchors: list[tuple[int, str, int, int]]
    ) -> list[tuple[str, str, int]]:
        """Other users whose recipes and stacks use this user's anchors: (name, bank, version)."""
        banks = dict.fromkeys((bank_id, name, version) for bank_id, name, version, _ in anchors)
        return [
            (other, name, version)
            for bank_id, name, version in banks
            for other in find_dependent_users(
                self._db, bank_id, [anchor for bank, _, _, anchor in anchors if bank == bank_id]
            )
            if other != user.name
        ]

    def _add_tombstone(self, user_id: int, *, had_anchor: bool) -> None:
        sql = """INSERT INTO tombstones (forgotten_at, items, had_anchor, user_uuid)
        SELECT ?, (SELECT count(*) FROM items WHERE user_id = users.id), ?, uuid FROM users WHERE id = ?"""
        self._db.execute_write(sql, (utc_now(), int(had_anchor), user_id))

    def _remove_from_refused(self, user_id: int) -> None:
        """Take the user out of the lists of users whom banks refused."""
        for row in self._db.fetch_dicts("SELECT id, config FROM banks WHERE instr(config, ?)", (REFUSED_USERS_KEY,)):
            config = load_json_columns(row, "config")["config"]
            if user_id in config.get(REFUSED_USERS_KEY, ()):
                config[REFUSED_USERS_KEY].remove(user_id)
                self._db.execute_write("UPDATE banks SET config = ? WHERE id = ?", (dump_json(config), row["id"]))

    def _redact_name(self, name: str) -> None:
        """Take the name out of runs' errors, but not out of longer names of other users."""
        for form in _written_forms(name):
            rows = self._db.fetch_tuples("SELECT id, error FROM runs WHERE instr(error, ?)", (form,))
            if not rows:
                continue
            pattern = name_pattern(form, self._longer_names(form))
            changed = [(pattern.sub(lambda found: found[1] or FORGOTTEN_NAME, text), run) for run, text in rows]
            self._db.execute_write_many("UPDATE runs SET error = ? WHERE id = ?", changed)

    def _longer_names(self, form: str) -> list[str]:
        """Other users' names, as messages write them, that hold `form`: an escaped name can hold what it does not."""
        names = self._db.fetch_tuples("SELECT name FROM users")
        return [written for (each,) in names for written in _written_forms(each) if form in written]


def _written_forms(name: str) -> list[str]:
    """The name as it is, and as messages escape and cut it."""
    return list(dict.fromkeys((name, repr(name)[1:-1], quote_text(name)[1:-1])))


def name_pattern(name: str, longer: Sequence[str] = ()) -> re.Pattern[str]:
    """A pattern that matches the name where it is not part of a longer word, and, as its group 1, `longer` names."""
    kept = "|".join(_whole_word(each) for each in sorted(longer, key=len, reverse=True))
    return re.compile(f"({kept or '(?!)'})|{_whole_word(name)}")


def _whole_word(name: str) -> str:
    before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
    return before + re.escape(name) + after
