"""Banks and their anchors: created, filled anchor by anchor, marked ready, removed. Knows nothing of training."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from mta_cli.errors import Command, NotFound, did_you_mean
from store.columns import dump_json, load_boolean_columns, load_json_columns, utc_now
from store.connection import Connection
from store.names import quote_text
from store.queries.dependents import find_dependent_users, remove_anchors, replace_anchors
from store.records import STALE_FOR_GOOD, Anchor, Bank
from store.tables.adapters import Adapters

_SELECT_SOURCES = """SELECT user_id FROM anchors WHERE bank_id = :bank AND user_id IS NOT NULL
UNION SELECT user_id FROM task_adapter_users WHERE bank_id = :bank
UNION SELECT items.user_id FROM neighbours JOIN items ON items.id = item_id WHERE bank_id = :bank"""
_SELECT_BANK = """SELECT id, name, version, key, task, base, embedder, task_adapter, status, seed, config, tokens,
seconds, created, purpose, basis, kernel FROM banks"""
_SELECT_USER_BASES = """SELECT base FROM banks AS b WHERE (:task IS NULL OR task = :task) AND id = (
    SELECT max(id) FROM banks WHERE task = b.task AND base = b.base AND status = 'ready' AND purpose = ''
) AND id IN (
    SELECT bank_id FROM recipes WHERE user_id = :user UNION SELECT bank_id FROM stacks WHERE user_id = :user
) GROUP BY base ORDER BY max(id) DESC"""
_SELECT_ANCHOR = """SELECT anchors.id, bank_id, user_id, users.name AS user, cluster, cluster_size, items, digest,
loss_first, loss_last, stale FROM anchors LEFT JOIN users ON users.id = user_id"""

PlannedAnchor = tuple[int, int, int, int]
"""(user id, cluster, cluster size, items)"""


class Banks:
    """All versions of all banks."""

    def __init__(self, db: Connection, adapters: Adapters) -> None:
        self._db, self._adapters = db, adapters

    def get_or_create_bank(
        self,
        name: str,
        key: str,
        task: str,
        base: str,
        embedder: str,
        seed: int,
        config: dict[str, Any],
        purpose: str = "",
    ) -> Bank:
        """The newest bank with this name, key and purpose, ready or not; if there is none, a new version.

        `latest_ready_bank` and `all` leave out banks with a `purpose`; `get` finds them only by version. `config` must
        not contain users' names: removing a user erases only the ids under its `REFUSED_USERS_KEY`.
        """
        with self._db.transaction():
            which = "name = ? AND key = ? AND purpose = ?"
            known = self._db.fetch_dict(f"{_SELECT_BANK} WHERE {which} ORDER BY version DESC", (name, key, purpose))
            if known is not None:
                return _bank_from_row(known)
            version = self._db.fetch_value("SELECT coalesce(max(version), 0) + 1 FROM banks WHERE name = ?", (name,))
            values = {"name": name, "version": version, "key": key, "task": task, "base": base, "embedder": embedder}
            values |= {"seed": seed, "config": dump_json(config), "created": utc_now(), "purpose": purpose}
            return self.by_id(self._db.insert_row("banks", values))

    def set_task_adapter(self, bank_id: int, digest: str, trained_on: Iterable[int] = ()) -> None:
        """Record the task adapter on which the bank's anchors are trained, and the users whose items trained it."""
        with self._db.transaction():
            self._update_bank(bank_id, task_adapter=digest)
            sql = "INSERT OR IGNORE INTO task_adapter_users (bank_id, user_id) VALUES (?, ?)"
            self._db.execute_write_many(sql, ((bank_id, user) for user in trained_on))

    def is_task_adapter_user(self, bank_id: int, user_id: int) -> bool:
        """Whether the bank's task adapter is recorded as trained on this user's items."""
        sql = "SELECT EXISTS (SELECT * FROM task_adapter_users WHERE bank_id = ? AND user_id = ?)"
        return bool(self._db.fetch_value(sql, (bank_id, user_id)))

    def source_users(self, bank_id: int) -> set[int]:
        """The users whose data the bank contains: anchors, users of the task adapter, owners of neighbours."""
        return {user for (user,) in self._db.fetch_tuples(_SELECT_SOURCES, {"bank": bank_id})}

    def plan_anchors(self, bank_id: int, rows: Sequence[PlannedAnchor]) -> list[Anchor]:
        """Store the planned anchors, unless the bank has anchors already; returns the bank's anchors."""
        with self._db.transaction():
            if not self.anchors(bank_id):
                sql = "INSERT INTO anchors (bank_id, user_id, cluster, cluster_size, items) VALUES (?, ?, ?, ?, ?)"
                self._db.execute_write_many(sql, ((bank_id, *row) for row in rows))
            return self.anchors(bank_id)

    def set_kernel(self, bank_id: int, kernel: dict[str, float] | None) -> None:
        """Record the weights of the bank's label memory; None for a bank without neighbours."""
        self._update_bank(bank_id, kernel=None if kernel is None else dump_json(kernel))

    def set_bank_config(self, bank_id: int, config: dict[str, Any]) -> None:
        """Replace the bank's `config`: its options and further facts."""
        self._update_bank(bank_id, config=dump_json(config))

    def record_anchor_screening(self, bank_id: int, config: dict[str, Any], refused: Collection[int]) -> None:
        """Record the result of screening anchors in `config`, and mark the `refused` anchors as stale for good."""
        with self._db.transaction():
            self._update_bank(bank_id, config=dump_json(config))
            change = f"UPDATE anchors SET stale = {STALE_FOR_GOOD} WHERE id = ?"
            self._db.execute_write_many(change, ((anchor,) for anchor in refused))

    def record_trained_anchor(
        self, anchor_id: int, digest: str, loss_first: float | None, loss_last: float | None
    ) -> None:
        """Record the adapter that was trained for an anchor, and its first and last loss."""
        values = {"digest": digest, "first": loss_first, "last": loss_last, "anchor": anchor_id}
        change = "digest = :digest, loss_first = :first, loss_last = :last"
        self._db.execute_write(f"UPDATE anchors SET {change} WHERE id = :anchor", values)

    def mark_bank_ready(self, bank_id: int, tokens: int, seconds: float) -> None:
        """Mark the bank as ready. Anchors without an adapter, whose users were removed meanwhile, become stale."""
        with self._db.transaction():
            self._db.execute_write("UPDATE anchors SET stale = 1 WHERE bank_id = ? AND digest IS NULL", (bank_id,))
            self._update_bank(bank_id, status="ready", tokens=tokens, seconds=seconds)

    def get(self, name: str, version: int | None = None, *, base: str | None = None) -> Bank:
        """The given version of a bank, with any status and on any base; without `version`, the newest ready one.

        `base` restricts the search for the newest one to the base with this fingerprint. Raises NotFound, with the
        known versions.
        """
        if version is None:
            which = "name = :name AND status = 'ready' AND purpose = '' AND (:base IS NULL OR base = :base)"
            values = {"name": name, "base": base}
            row = self._db.fetch_dict(f"{_SELECT_BANK} WHERE {which} ORDER BY version DESC", values)
        else:
            row = self._db.fetch_dict(f"{_SELECT_BANK} WHERE name = ? AND version = ?", (name, version))
        if row is None:
            raise self._not_found_error(name, version, base)
        return _bank_from_row(row)

    def by_id(self, bank_id: int) -> Bank:
        """The bank with this id. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_BANK} WHERE id = ?", (bank_id,))
        if row is None:
            raise NotFound(f"There is no bank number {bank_id}.", hint=Command("bank list"))
        return _bank_from_row(row)

    def latest_ready_bank(self, task: str, base: str | None = None) -> Bank | None:
        """The newest ready bank of a task; with `base`, the newest one for that fingerprint."""
        which = "task = :task AND status = 'ready' AND purpose = '' AND (:base IS NULL OR base = :base)"
        row = self._db.fetch_dict(
            f"{_SELECT_BANK} WHERE {which} ORDER BY id DESC LIMIT 1", {"task": task, "base": base}
        )
        return _bank_from_row(row) if row is not None else None

    def bases(self, task: str | None = None, *, ready: bool = True) -> list[str]:
        """The fingerprints of bases with a ready bank, newest first; without `ready`, unfinished banks count too."""
        which = "purpose = '' AND (:task IS NULL OR task = :task) AND (status = 'ready' OR NOT :ready)"
        sql = f"SELECT base FROM banks WHERE {which} GROUP BY base ORDER BY max(id) DESC"
        return [base for (base,) in self._db.fetch_tuples(sql, {"task": task, "ready": ready})]

    def bases_of_user(self, user_id: int, task: str | None = None) -> list[str]:
        """The fingerprints of bases on whose newest bank the user has a recipe or a stack, newest bank first."""
        values = {"user": user_id, "task": task}
        return [base for (base,) in self._db.fetch_tuples(_SELECT_USER_BASES, values)]

    def all(self, *, with_evaluations: bool = False) -> list[Bank]:
        """All banks, by name and version; with `with_evaluations`, also the banks of evaluations."""
        which = "purpose = '' OR :with_evaluations ORDER BY name, version"
        rows = self._db.fetch_dicts(f"{_SELECT_BANK} WHERE {which}", {"with_evaluations": with_evaluations})
        return [_bank_from_row(row) for row in rows]

    def banks_on_task_adapter(self, task_adapter: str, embedder: str) -> list[Bank]:
        """All banks with this task adapter and embedder, also the banks of evaluations, oldest first."""
        which = "task_adapter = ? AND embedder = ? ORDER BY id"
        rows = self._db.fetch_dicts(f"{_SELECT_BANK} WHERE {which}", (task_adapter, embedder))
        return [_bank_from_row(row) for row in rows]

    def anchors(self, bank_id: int) -> list[Anchor]:
        """The bank's anchors, by id."""
        rows = self._db.fetch_dicts(f"{_SELECT_ANCHOR} WHERE bank_id = ? ORDER BY anchors.id", (bank_id,))
        return [Anchor(**load_boolean_columns(row, "stale")) for row in rows]

    def remove(self, bank_id: int) -> dict[str, int]:
        """Remove a bank, its recipes and stacks, and the adapters that only they used.

        Returns the numbers of removed anchors, recipes, stacks and adapters.
        """
        with self._db.transaction():
            counts = {
                table: int(self._db.fetch_value(f"SELECT count(*) FROM {table} WHERE bank_id = ?", (bank_id,)))
                for table in ("anchors", "recipes", "stacks")
            }
            self.by_id(bank_id)
            self._db.execute_write("DELETE FROM banks WHERE id = ?", (bank_id,))
            counts["adapters"] = len(self._adapters.remove_unreferenced())
        return counts

    def dependent_users(self, bank_id: int, anchors: Collection[int] | None = None) -> list[str]:
        """The names of users, sorted, whose recipe or stack depends on `anchors`, by default the stale ones.

        A core depends on all anchors of its bank.
        """
        stale = [anchor.id for anchor in self.anchors(bank_id) if anchor.stale] if anchors is None else anchors
        return find_dependent_users(self._db, bank_id, stale)

    def replace_stale_anchors(
        self, bank_id: int, replacements: Sequence[Anchor], key: str, config: dict[str, Any]
    ) -> None:
        """Replace stale anchors by trained ones, and remove the recipes and stacks that depend on the stale ones.

        Each replacement carries the id of the stale anchor that it replaces, and is stored with a new id. The bank gets
        a new identity: `key` and `config` are as for `get_or_create_bank`.
        """
        with self._db.transaction():
            replace_anchors(self._db, bank_id, replacements)
            self._update_bank(bank_id, key=key, config=dump_json(config))
            self._adapters.remove_unreferenced()

    def remove_stale_anchors(self, bank_id: int, anchors: Collection[int] | None = None) -> int:
        """Remove the stale anchors among `anchors` (None: all anchors) from a bank; returns their number.

        The recipes and stacks that depend on them are removed too.
        """
        with self._db.transaction():
            stale = [one.id for one in self.anchors(bank_id) if one.stale and (anchors is None or one.id in anchors)]
            remove_anchors(self._db, bank_id, stale)
            self._adapters.remove_unreferenced()
        return len(stale)

    def _update_bank(self, bank_id: int, **values: Any) -> None:
        change = ", ".join(f"{name} = :{name}" for name in values)
        self._db.execute_write(f"UPDATE banks SET {change} WHERE id = :bank", {**values, "bank": bank_id})

    def _not_found_error(self, name: str, version: int | None, base: str | None) -> NotFound:
        versions = [bank for bank in self.all() if bank.name == name]
        if versions:
            there = ", ".join(f"v{bank.version} ({bank.status})" for bank in versions)
            on = "" if base is None else " on this base"
            wanted = f"version {version}" if version is not None else f"ready version{on}"
            return NotFound(f"Bank {quote_text(name)} has no {wanted}.", hint=f"its versions are {there}")
        near = difflib.get_close_matches(name, {bank.name for bank in self.all()}, n=3)
        hint = did_you_mean(
            [quote_text(one) for one in near],
            (Command("bank list"), " shows all banks; ", Command("bank build"), " builds one"),
        )
        return NotFound(f"There is no bank {quote_text(name)}.", hint=hint)


def _bank_from_row(row: dict[str, Any]) -> Bank:
    return Bank(**load_json_columns(row, "config", "kernel"))
