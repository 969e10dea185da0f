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
from store.json_columns import dumps
from store.process import now
from store.queries.dependents import resting
from store.records import User
from store.seals import amend
from store.tables.adapters import Adapters
from store.tables.runs import THINGS
from store.tables.users import Forgotten

SOMEBODY = "(forgotten)"
"""What stands where the person's name was, in the records of others."""

# Columns with documents or messages that are about others but may name the person.
DOCUMENTS = (
    ("runs", "config"),
    ("runs", "result"),
    ("evaluations", "config"),
    ("evaluations", "result"),
    ("messages", "source"),
)
# Banks of evaluations serve nobody, so that those made from the person go whole.
_MEASURED_WITH = """DELETE FROM banks WHERE id IN (
    SELECT bank_id FROM eval_banks JOIN eval_people USING (evaluation_id, fold) WHERE user_id = ? AND role = 'bank'
)"""
TEXTS = (("runs", "subject"), ("runs", "error"))
VOCABULARY = frozenset(
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
_THINGS = ", ".join(f"'{kind}'" for kind in THINGS)
_UNIT = re.compile(r"anchor \d+|task adapter")  # a step's unit that names nobody


class Forgetting:
    """Removes people from a store."""

    def __init__(self, db: Connection, adapters: Adapters, files: AdapterFiles) -> None:
        self._db, self._adapters, self._files = db, adapters, files

    def forget(self, user: User) -> Forgotten:
        """See `Users.forget`."""
        with self._db.transaction():
            self._db.write(_MEASURED_WITH, (user.id,))
            anchors = self._anchors_of(user.id)
            stale, rest = [anchor[1:] for anchor in anchors], self._resting(user, anchors)
            amend(self._db, "anchors", "user_id = NULL, stale = 1", "user_id = :user", {"user": user.id})
            self._bury(user.id, had_anchor=bool(stale))
            self._db.write(f"DELETE FROM runs WHERE subject = ? AND kind NOT IN ({_THINGS})", (user.name,))
            self._db.write("DELETE FROM users WHERE id = ?", (user.id,))
            self._unname(user.name)
            removed = self._adapters.remove_unreferenced()
            self._db.after_commit(self.erase)
        banks = list(dict.fromkeys(f"{name} v{version}" for name, version, _ in stale))
        return Forgotten(user.name, removed, stale, banks, rest)

    def erase(self) -> None:
        """Leave no byte of people who were forgotten, if any are left. Raises StoreBusy while another process reads.

        A crash or a reader may prevent it; then the next opening of the store does it.
        """
        if not self._owed():
            return
        self._files.drop_partials()  # an unfinished training may be on their words
        self._files.drop_orphans({digest for (digest,) in self._db.tuples("SELECT digest FROM adapters")})
        self._db.write("INSERT INTO items_fts (items_fts) VALUES ('optimize')")
        self._db.compact()
        self._db.write("UPDATE tombstones SET erased = 1")

    def _owed(self) -> bool:
        return bool(self._db.tuples("SELECT 1 FROM tombstones WHERE NOT erased LIMIT 1"))

    def _anchors_of(self, user_id: int) -> list[tuple[int, str, int, int]]:
        """Where the person is an anchor: (bank id, bank, version, anchor id)."""
        sql = """SELECT banks.id, banks.name, version, anchors.id FROM anchors JOIN banks ON banks.id = bank_id
        WHERE user_id = ? ORDER BY anchors.id"""
        return [(bank_id, name, version, anchor) for bank_id, name, version, anchor in self._db.tuples(sql, (user_id,))]

    def _resting(self, user: User, anchors: list[tuple[int, str, int, int]]) -> list[tuple[str, str, int]]:
        """Others whose recipes and stacks rest on the person's anchors: (name, bank, version)."""
        banks = dict.fromkeys((bank_id, name, version) for bank_id, name, version, _ in anchors)
        return [
            (other, name, version)
            for bank_id, name, version in banks
            for other in resting(self._db, bank_id, [anchor for bank, _, _, anchor in anchors if bank == bank_id])
            if other != user.name
        ]

    def _bury(self, user_id: int, *, had_anchor: bool) -> None:
        count = self._db.value("SELECT count(*) FROM items WHERE user_id = ?", (user_id,))
        sql = "INSERT INTO tombstones (forgotten_at, items, had_anchor) VALUES (?, ?, ?)"
        self._db.write(sql, (now(), count, int(had_anchor)))

    def _unname(self, name: str) -> None:
        pattern = as_a_word(name)
        units = [unit for (unit,) in self._db.tuples("SELECT DISTINCT unit FROM steps") if names(unit, pattern)]
        self._db.write_many("DELETE FROM steps WHERE unit = ?", ((unit,) for unit in units))
        for place in (*DOCUMENTS, *TEXTS):
            self._rewrite(place, pattern)

    def _rewrite(self, place: tuple[str, str], name: re.Pattern[str]) -> None:
        for number, text in self._db.tuples(told(*place)):
            changed = rewritten(place, text, name)
            if changed != text:
                self._db.write(f"UPDATE {place[0]} SET {place[1]} = ? WHERE id = ?", (changed, number))


def told(table: str, column: str) -> str:
    """The query for row numbers and what a place of `DOCUMENTS` or `TEXTS` holds, where that may name somebody."""
    people = f" AND kind NOT IN ({_THINGS})" if (table, column) == ("runs", "subject") else ""
    return f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL{people}"


def rewritten(place: tuple[str, str], text: str, name: re.Pattern[str]) -> str:
    """What a place holds, with `SOMEBODY` for the name. A document that is damaged is read as plain text."""
    if place in DOCUMENTS:
        with contextlib.suppress(ValueError):
            return dumps(without(json.loads(text), name), in_order=True)
    return name.sub(SOMEBODY, text)


def names(unit: str, name: re.Pattern[str]) -> bool:
    """Whether a step's unit names somebody of this name."""
    return _UNIT.fullmatch(unit) is None and name.search(unit) is not None


def as_a_word(name: str) -> re.Pattern[str]:
    """Finds the name where it is not part of a longer word."""
    before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
    return re.compile(before + re.escape(name) + after)


def without(document: Any, name: re.Pattern[str]) -> Any:
    """The document with `SOMEBODY` for the name in every value but those of `VOCABULARY`."""
    if isinstance(document, str):
        return name.sub(SOMEBODY, document)
    if isinstance(document, list):
        return [without(value, name) for value in document]
    if isinstance(document, dict):
        return {key: value if key in VOCABULARY else without(value, name) for key, value in document.items()}
    return document
