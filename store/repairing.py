"""What is done about a damaged store: what can be made again is dropped, with the command for it; the rest is named.

Every repair is one transaction. Knows no tensors and asks nobody. A damaged database is for `salvage`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mta_cli.errors import IntegrityFault
from store.connection import Connection
from store.damage import Damaged, damaged_documents, damaged_rows
from store.files import AdapterFiles
from store.seals import amend, is_sound, put_seals
from store.tables.adapters import Adapters
from store.tables.recipes_and_stacks import unpack_anchor_weights

NAMES_SHOWN = 10
_REFIT = "kernel = NULL"
_AGAIN = {
    "users": "their history can be imported again: mta user add NAME --history FILE",
    "items": "the history can be imported again: mta user add {user} --history FILE, or mta data import",
    "queries": "the queries can be imported again: mta data import",
    "profiles": "it is made again when it is needed",
    "neighbours": "mta bank build --task {task} embeds them again",
    "recipes": "mta user fuse {user} --task {task}",
    "stacks": "mta user adapt {user} --task {task}",
    "tasks": "mta task add FILE",
    "banks": "mta bank build --task {task}, then mta user adapt",
    "anchors": "mta bank build --task {task}, then mta user adapt",
    "chats": "nothing brings it back but a copy of the store",
    "messages": "nothing brings it back but a copy of the store",
}
_USES = """SELECT 'task' AS kind, id AS bank_id, id AS number, task_adapter AS digest FROM banks
    WHERE task_adapter IS NOT NULL
UNION ALL SELECT 'basis', id, id, basis FROM banks WHERE basis IS NOT NULL
UNION ALL SELECT 'meta', bank_id, id, digest FROM anchors WHERE digest IS NOT NULL
UNION ALL SELECT 'stack', bank_id, rowid, digest FROM stacks
    WHERE digest NOT IN (SELECT basis FROM banks WHERE basis IS NOT NULL)"""


@dataclass(frozen=True)
class Repair:
    """One damage and what is done about it. `again`: how what was lost comes back, or that nothing brings it back."""

    what: str
    action: str
    again: str
    apply: Callable[[], object] = field(repr=False, compare=False)


class Repairing:
    """Plans and does repairs in a store whose database SQLite can read."""

    def __init__(self, db: Connection, adapters: Adapters, files: AdapterFiles) -> None:
        self._db, self._adapters, self._files = db, adapters, files

    def repairs(self) -> list[Repair]:
        """What there is to do now; some damage only shows when other has been repaired. Nothing when all is well."""
        for table in ("banks", "anchors"):  # what else is done changes such rows, which must be sound then
            if first := list(self._rows(table)):
                return first
        ways = (
            self._unread,
            self._used,
            self._rows,
            self._dangling,
            self._shares,
            self._documents,
            self._index,
            self._left,
        )
        return [repair for way in ways for repair in way()]

    def _once(self, *statements: str) -> None:
        with self._db.transaction():
            for statement in statements:
                self._db.execute_write(statement)
            self._adapters.remove_unreferenced()

    # Adapters that cannot be used any more, by what uses them.

    def _unread(self) -> Iterator[Repair]:
        for adapter in damaged_rows(self._db, "adapters"):
            if not self._db.fetch_tuples(f"SELECT 1 FROM ({_USES}) WHERE digest = ?", (adapter.key,)):
                yield Repair(
                    f"{adapter.words} is damaged",
                    "its record is removed",
                    "nothing uses it",
                    partial(self._once, f"DELETE FROM adapters WHERE {adapter.where}"),
                )

    def _used(self) -> Iterator[Repair]:
        unsound = {row.key for row in damaged_rows(self._db, "adapters")}
        known = {digest for (digest,) in self._db.fetch_tuples("SELECT digest FROM adapters")} - unsound
        fault: dict[str, str] = {}
        for kind, bank_id, number, digest in self._db.fetch_tuples(_USES):
            if digest not in fault:
                fault[digest] = self._fault(digest, known)
            if fault[digest]:
                yield self._without(kind, bank_id, number, fault[digest])

    def _fault(self, digest: str, known: set[str]) -> str:
        if digest not in known:
            return f"The record of adapter {digest[:80]} is damaged or gone."
        try:
            self._files.verify(digest)
        except IntegrityFault as error:
            return error.message
        return ""

    def _without(self, kind: str, bank_id: int, number: int, fault: str) -> Repair:
        bank, task = self._bank(bank_id)
        if kind == "task":
            people = self._resting(bank_id)
            action = f"bank {bank} is to be built again from the start{_going('recipes and stacks', people)}"
            return Repair(fault, action, _AGAIN["anchors"].format(task=task), partial(self._restart, bank_id))
        if kind == "meta":
            action = f"the meta-LoRA of anchor {number} is taken out of bank {bank}, which is to be finished again"
            return Repair(fault, action, f"mta bank build --task {task}", partial(self._untrain, bank_id, number))
        if kind == "basis":
            people = self._resting(bank_id, cores=True)
            action = f"the directions of bank {bank} are dropped{_going('cores', people)}"
            return Repair(fault, action, f"mta user adapt --task {task}", partial(self._unbase, bank_id))
        ((name, of),) = self._db.fetch_tuples(
            "SELECT name, task FROM stacks JOIN users ON users.id = user_id WHERE stacks.rowid = ?", (number,)
        )
        again = f"mta user adapt {shlex.quote(name)} --task {of}"
        drop = partial(self._once, f"DELETE FROM stacks WHERE rowid = {number:d}")
        return Repair(fault, f"the stack of {name} on bank {bank} is dropped", again, drop)

    def _restart(self, bank_id: int) -> None:
        with self._db.transaction():
            for table in ("stacks", "recipes", "anchors"):
                self._db.execute_write(f"DELETE FROM {table} WHERE bank_id = ?", (bank_id,))
            amend(
                self._db, "banks", "task_adapter = NULL, basis = NULL, status = 'building'", "id = :id", {"id": bank_id}
            )
            self._adapters.remove_unreferenced()

    def _untrain(self, bank_id: int, anchor: int) -> None:
        with self._db.transaction():
            amend(self._db, "anchors", "digest = NULL", "id = :id", {"id": anchor})
            amend(self._db, "banks", "status = 'building'", "id = :id", {"id": bank_id})
            self._adapters.remove_unreferenced()

    def _unbase(self, bank_id: int) -> None:
        with self._db.transaction():
            self._db.execute_write("DELETE FROM stacks WHERE bank_id = ? AND numbers IS NOT NULL", (bank_id,))
            amend(self._db, "banks", "basis = NULL", "id = :id", {"id": bank_id})
            self._adapters.remove_unreferenced()

    def _bank(self, bank_id: int) -> tuple[str, str]:
        found = self._db.fetch_tuples("SELECT name || ' v' || version, task FROM banks WHERE id = ?", (bank_id,))
        return found[0] if found else (f"number {bank_id}", "TASK")

    def _resting(self, bank_id: int, *, cores: bool = False) -> list[str]:
        """Who has a recipe or stack on a bank, or a core alone."""
        which = "SELECT user_id FROM stacks WHERE bank_id = ?1" + (" AND numbers IS NOT NULL" if cores else "")
        if not cores:
            which += " UNION SELECT user_id FROM recipes WHERE bank_id = ?1"
        sql = f"SELECT name FROM users WHERE id IN ({which}) ORDER BY name"
        return [name for (name,) in self._db.fetch_tuples(sql, (bank_id,))]

    # Rows that are not what was stored.

    def _rows(self, only: str | None = None) -> Iterator[Repair]:
        rows = [row for row in damaged_rows(self._db, only) if row.table != "adapters"]
        groups: dict[tuple[str, str | None, str | None, int | None], list[Damaged]] = {}
        for row in rows:
            user = None if row.table == "neighbours" else row.user  # nobody asks for those of one person
            groups.setdefault((row.table, user, row.task, row.bank_id), []).append(row)
        for (table, user, task, bank_id), some in groups.items():
            again = _AGAIN[table].format(user=shlex.quote(user or "USER"), task=shlex.quote(task or "TASK"))
            what = f"{_listed([row.words for row in some])} {'are' if len(some) > 1 else 'is'} damaged"
            yield Repair(what, self._loss(table, bank_id), again, partial(self._drop, table, some))

    def _loss(self, table: str, bank_id: int | None) -> str:
        if table == "banks" and bank_id is not None:
            return f"the bank is removed{_going('recipes and stacks', self._resting(bank_id))}"
        if table == "anchors" and bank_id is not None:
            people = self._resting(bank_id)
            bank = self._bank(bank_id)[0]
            return f"bank {bank} is to be built again from the start{_going('recipes and stacks', people)}"
        if table == "users":
            return "removed with everything of theirs, for the name or the consent may be another's"
        return "removed"

    def _drop(self, table: str, rows: Sequence[Damaged]) -> None:
        with self._db.transaction():
            if table == "anchors":
                for bank_id in {row.bank_id for row in rows if row.bank_id is not None}:
                    if self._db.fetch_tuples("SELECT 1 FROM banks WHERE id = ?", (bank_id,)):
                        self._restart(bank_id)
            for row in rows:
                self._prepare(row)
                self._db.execute_write(f"DELETE FROM {table} WHERE {row.where}")
            if table == "items":  # the index takes out the words that it is told, which are not those that it has
                self._db.execute_write("INSERT INTO items_fts (items_fts) VALUES ('rebuild')")
            self._adapters.remove_unreferenced()

    def _prepare(self, row: Damaged) -> None:
        """What rests on a row and does not go with it."""
        if row.table == "items":  # a profile is a sum, from which nobody is taken out
            who = f"(SELECT user_id FROM items WHERE {row.where})"
            self._db.execute_write(f"DELETE FROM profiles WHERE user_id = {who}")
            banks = f"(SELECT bank_id FROM neighbours WHERE item_id = {row.where.split()[-1]})"
            amend(self._db, "banks", _REFIT, f"id IN {banks}", {})
        if row.table == "neighbours" and row.bank_id is not None:
            amend(self._db, "banks", _REFIT, "id = :id", {"id": row.bank_id})
        if row.table == "users":
            number = row.where.split()[-1]
            self._db.execute_write(f"UPDATE anchors SET user_id = NULL, stale = 1 WHERE user_id = {number}")
            put_seals(self._db, "anchors", "user_id IS NULL AND stale", ())

    # What refers to something that is not there, and what is beside the tables.

    def _dangling(self) -> Iterator[Repair]:
        for table, number, parent, link in self._db.fetch_tuples("PRAGMA foreign_key_check"):
            if number is None:
                yield Repair(
                    f"a row of {table} refers to a row of {parent} that is not there",
                    "such rows are removed",
                    "mta bank build embeds neighbours again",
                    partial(
                        self._once,
                        "DELETE FROM neighbours WHERE item_id NOT IN (SELECT id FROM items)",
                        "DELETE FROM neighbours WHERE bank_id NOT IN (SELECT id FROM banks)",
                    ),
                )
                continue
            links = self._db.fetch_tuples(f"SELECT id, \"from\" FROM pragma_foreign_key_list('{table}')")
            column = dict(links)[link]
            must = self._db.fetch_value(
                f"SELECT \"notnull\" FROM pragma_table_info('{table}') WHERE name = ?", (column,)
            )
            change = f"DELETE FROM {table}" if must else f"UPDATE {table} SET {column} = NULL"
            yield Repair(
                f"row {number} of {table} refers to a row of {parent} that is not there",
                "the row is removed" if must else f"its {column} is emptied",
                "nothing brings it back",
                partial(self._once, f"{change} WHERE rowid = {number:d}"),
            )

    def _shares(self) -> Iterator[Repair]:
        anchors = set(self._db.fetch_tuples("SELECT id, bank_id FROM anchors"))
        verbs = {"recipes": ("shares", "fuse"), "stacks": ("recipe", "adapt")}
        for table, (column, verb) in verbs.items():
            sql = f"""SELECT {table}.rowid, name, task, bank_id, {column} FROM {table}
            JOIN users ON users.id = user_id WHERE {is_sound(table)}"""
            for number, name, task, bank_id, packed in self._db.fetch_tuples(sql):
                if all((share.anchor_id, bank_id) in anchors for share in unpack_anchor_weights(packed)):
                    continue
                yield Repair(
                    f"the {table[:-1]} of {name} names anchors that are not there",
                    "it is dropped",
                    f"mta user {verb} {shlex.quote(name)} --task {task}",
                    partial(self._once, f"DELETE FROM {table} WHERE rowid = {number:d}"),
                )

    def _documents(self) -> Iterator[Repair]:
        for table, column, number in damaged_documents(self._db):
            what, remove = (
                f"the {column} of {table[:-1]} {number} is damaged",
                f"DELETE FROM {table} WHERE id = {number:d}",
            )
            if table == "evaluations" and column == "result":
                anew = f"UPDATE evaluations SET result = '{{}}', status = 'running' WHERE id = {number:d}"
                yield Repair(what, "it is emptied", "mta eval run makes it from the answers", partial(self._once, anew))
            else:
                yield Repair(
                    what, f"the {table[:-1]} is removed", "nothing brings it back", partial(self._once, remove)
                )

    def _index(self) -> Iterator[Repair]:
        try:
            self._db.execute_write("INSERT INTO items_fts (items_fts, rank) VALUES ('integrity-check', 1)")
        except IntegrityFault:
            rebuild = partial(self._once, "INSERT INTO items_fts (items_fts) VALUES ('rebuild')")
            yield Repair("the full-text index does not agree with the items", "it is made again", "done", rebuild)

    def _left(self) -> Iterator[Repair]:
        known = {digest for (digest,) in self._db.fetch_tuples("SELECT digest FROM adapters")}
        for path in self._files.find_orphans(known):
            yield Repair(f"{path} belongs to no adapter of the store", "removed", "nothing uses it", _removal(path))
        for path in self._files.abandoned_temporaries():
            yield Repair(f"{path} is left over from a write that was stopped", "removed", "nothing", _removal(path))


def _removal(path: Path) -> Callable[[], object]:
    return partial(path.unlink, missing_ok=True)


def _going(what: str, people: Sequence[str]) -> str:
    return f", and the {what} of {_listed(people)} on it go" if people else ""


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    shown = ", ".join(every[:NAMES_SHOWN])
    return f"{shown} and {len(every) - NAMES_SHOWN} more" if len(every) > NAMES_SHOWN else shown
