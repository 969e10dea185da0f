"""How a person is forgotten: rows, the full-text index, names inside documents, files, and the bytes of deleted rows.

Knows the tables that hold people. Knows nothing of why somebody is forgotten.
"""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from store.connection import Connection
from store.files import AdapterFiles
from store.json_columns import dump_json
from store.process import utc_now
from store.queries.dependents import find_dependent_users
from store.records import User
from store.snapshot import remove_saved_databases
from store.tables.adapters import Adapters
from store.tables.runs import NON_USER_RUN_KINDS
from store.tables.users import ForgetResult

FORGOTTEN_NAME = "(forgotten)"
"""What stands where the person's name was, in the records of others."""

# Columns with documents or messages that are about others but may name the person.
JSON_COLUMNS_WITH_NAMES = (
    ("runs", "config"),
    ("runs", "result"),
    ("evaluations", "config"),
    ("evaluations", "result"),
    ("messages", "source"),
)
# Banks of evaluations serve nobody, so that those made from the person go whole.
_DELETE_EVAL_BANKS = """DELETE FROM banks WHERE id IN (
    SELECT bank_id FROM eval_banks JOIN eval_people USING (evaluation_id, fold) WHERE user_id = ? AND role = 'bank'
)"""
TEXT_COLUMNS_WITH_NAMES = (("runs", "subject"), ("runs", "error"))
KEYS_WITHOUT_NAMES = frozenset(
    [
        "a",
        "b",
        "bank",
        "base",
        "basis",
        "device",
        "dtype",
        "embedder",
        "fingerprint",
        "identity",
        "kind",
        "method",
        "methods",
        "metric",
        "pick",
        "placement",
        "recipe",
        "reference",
        "status",
        "targets",
        "task",
        "task_adapter",
        "task_placement",
        "weights",
    ]
)
"""Keys of documents whose values are words of the program, or names of things: also where somebody is called so."""
_NON_USER_RUN_KINDS_SQL = ", ".join(f"'{kind}'" for kind in NON_USER_RUN_KINDS)
_NAMELESS_UNIT_PATTERN = re.compile(r"anchor \d+|task adapter")  # a step's unit that names nobody


class UserEraser:
    """Removes people from a store."""

    def __init__(self, db: Connection, adapters: Adapters, files: AdapterFiles) -> None:
        self._db, self._adapters, self._files = db, adapters, files

    def erase_user(self, user: User) -> ForgetResult:
        """See `Users.forget`."""
        with self._db.transaction():
            self._db.execute_write(_DELETE_EVAL_BANKS, (user.id,))
            anchors = self._anchors_of_user(user.id)
            stale, rest = [anchor[1:] for anchor in anchors], self._dependents_of_anchors(user, anchors)
            self._db.execute_write("UPDATE anchors SET user_id = NULL, stale = 1 WHERE user_id = ?", (user.id,))
            self._add_tombstone(user.id, had_anchor=bool(stale))
            self._db.execute_write(
                f"DELETE FROM runs WHERE subject = ? AND kind NOT IN ({_NON_USER_RUN_KINDS_SQL})", (user.name,)
            )
            self._db.execute_write("DELETE FROM users WHERE id = ?", (user.id,))
            self._redact_name(user.name)
            removed = self._adapters.remove_unreferenced()
            self._db.after_commit(self.purge_deleted_bytes)
        banks = list(dict.fromkeys(f"{name} v{version}" for name, version, _ in stale))
        return ForgetResult(user.name, removed, stale, banks, rest)

    def purge_deleted_bytes(self) -> None:
        """Leave no byte of people who were forgotten, if any are left. Raises StoreBusy while another process reads.

        A crash or a reader may prevent it; then the next opening of the store does it.
        """
        if not self._has_pending_purge():
            return
        self._files.drop_all_checkpoints()  # an unfinished training may be on their words
        remove_saved_databases(self._db.root)
        self._files.drop_orphans({digest for (digest,) in self._db.fetch_tuples("SELECT digest FROM adapters")})
        self._db.execute_write("INSERT INTO items_fts (items_fts) VALUES ('optimize')")
        self._db.vacuum()
        self._db.execute_write("UPDATE tombstones SET erased = 1")

    def _has_pending_purge(self) -> bool:
        return bool(self._db.fetch_tuples("SELECT 1 FROM tombstones WHERE NOT erased LIMIT 1"))

    def _anchors_of_user(self, user_id: int) -> list[tuple[int, str, int, int]]:
        """Where the person is an anchor: (bank id, bank, version, anchor id)."""
        sql = """SELECT banks.id, banks.name, version, anchors.id FROM anchors JOIN banks ON banks.id = bank_id
        WHERE user_id = ? ORDER BY anchors.id"""
        return [
            (bank_id, name, version, anchor)
            for bank_id, name, version, anchor in self._db.fetch_tuples(sql, (user_id,))
        ]

    def _dependents_of_anchors(
        self, user: User, anchors: list[tuple[int, str, int, int]]
    ) -> list[tuple[str, str, int]]:
        """Others whose recipes and stacks rest on the person's anchors: (name, bank, version)."""
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

    def _redact_name(self, name: str) -> None:
        pattern = whole_word_pattern(name)
        units = [
            unit
            for (unit,) in self._db.fetch_tuples("SELECT DISTINCT unit FROM steps")
            if unit_names_user(unit, pattern)
        ]
        self._db.execute_write_many("DELETE FROM steps WHERE unit = ?", ((unit,) for unit in units))
        for place in (*JSON_COLUMNS_WITH_NAMES, *TEXT_COLUMNS_WITH_NAMES):
            self._redact_column(place, pattern)

    def _redact_column(self, place: tuple[str, str], name: re.Pattern[str]) -> None:
        for number, text in self._db.fetch_tuples(mention_query_sql(*place)):
            changed = redact_column_text(place, text, name)
            if changed != text:
                self._db.execute_write(f"UPDATE {place[0]} SET {place[1]} = ? WHERE id = ?", (changed, number))


def mention_query_sql(table: str, column: str) -> str:
    """The query for row numbers and what a place of `DOCUMENTS` or `TEXTS` holds, where that may name somebody."""
    people = f" AND kind NOT IN ({_NON_USER_RUN_KINDS_SQL})" if (table, column) == ("runs", "subject") else ""
    return f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL{people}"


def redact_column_text(place: tuple[str, str], text: str, name: re.Pattern[str]) -> str:
    """What a place holds, with `SOMEBODY` for the name. A document that is damaged is read as plain text."""
    if place in JSON_COLUMNS_WITH_NAMES:
        with contextlib.suppress(ValueError):
            return dump_json(redact_document(json.loads(text), name), in_order=True)
    return name.sub(FORGOTTEN_NAME, text)


def unit_names_user(unit: str, name: re.Pattern[str]) -> bool:
    """Whether a step's unit names somebody of this name."""
    return _NAMELESS_UNIT_PATTERN.fullmatch(unit) is None and name.search(unit) is not None


def whole_word_pattern(name: str) -> re.Pattern[str]:
    """Finds the name where it is not part of a longer word."""
    before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
    return re.compile(before + re.escape(name) + after)


def redact_document(document: Any, name: re.Pattern[str]) -> Any:
    """The document with `SOMEBODY` for the name in every value but those of `VOCABULARY`."""
    if isinstance(document, str):
        return name.sub(FORGOTTEN_NAME, document)
    if isinstance(document, list):
        return [redact_document(value, name) for value in document]
    if isinstance(document, dict):
        return {
            key: value if key in KEYS_WITHOUT_NAMES else redact_document(value, name) for key, value in document.items()
        }
    return document
