"""A user's stored model: the recipe of the fusion, and the row of the stack. Knows no tensors."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mta_cli.errors import Command, IntegrityFault
from store.columns import null_to_nan, utc_now
from store.connection import Connection
from store.files import sha256
from store.records import AnchorWeight, Recipe, Stack
from store.tables.adapters import Adapters

_WEIGHT_STRUCT = struct.Struct("<Iff")  # anchor id, similarity, weight
RECIPE_ENTRY_BYTES = _WEIGHT_STRUCT.size
"""Bytes per anchor in a recipe."""

_SELECT_RECIPE = "SELECT user_id, task, bank_id, method, bytes, created, items_hash FROM recipes"
_STACK_COLUMNS = [field.name for field in fields(Stack) if field.name not in ("recipe", "created", "numbers_sha256")]
_SELECT_STACK = f"SELECT {', '.join(_STACK_COLUMNS)}, numbers_sha256, created FROM stacks"
_WHERE_KEY = "WHERE user_id = ? AND task = ? AND bank_id = ?"
_LOSS_COLUMNS = ("loss_before", "loss_after")
_SELECT_USAGE = """SELECT anchor_id, count(*), avg(weight), total(abs(weight)),
    total(gain * abs(weight)) / nullif(total(abs(weight)) FILTER (WHERE gain IS NOT NULL), 0), count(gain)
FROM (
    SELECT anchor_id, weight, iif(abs(heldout_before - heldout_after) < 1e300, heldout_before - heldout_after, NULL)
        AS gain
    FROM recipe_anchors LEFT JOIN stacks USING (user_id, task, bank_id)
    WHERE anchor_id IN (SELECT id FROM anchors WHERE anchors.bank_id = ?) AND weight != 0
) GROUP BY anchor_id"""
_SELECT_CHANGES = """SELECT user_id, heldout_before, heldout_after, heldout_before - heldout_after AS change FROM stacks
WHERE bank_id = ? AND abs(heldout_before - heldout_after) < 1e300"""

Key = tuple[int, str, int]
"""(user id, task, bank id)"""


def pack_anchor_weights(shares: Sequence[AnchorWeight]) -> bytes:
    """A recipe's weights as bytes, to identify the models that are made with them. The store keeps them as rows.

    12 bytes an anchor: anchor id (uint32), similarity and weight (float32), little-endian.
    """
    return b"".join(_WEIGHT_STRUCT.pack(share.anchor_id, share.similarity, share.weight) for share in shares)


def round_anchor_weights(shares: Iterable[AnchorWeight]) -> tuple[AnchorWeight, ...]:
    """The weights as the store keeps them: similarity and weight rounded to float32."""
    packed = pack_anchor_weights(tuple(shares))
    return tuple(AnchorWeight(*values) for values in _WEIGHT_STRUCT.iter_unpack(packed))


@dataclass(frozen=True)
class AnchorTotals:
    """One anchor's use in all users' recipes; weights of 0 are left out.

    `heldout_gain` is by how much the stacks of its `measured_users` lowered the held-out loss (nats a token): a mean
    weighted by the anchor's absolute weight; None without measured users.
    """

    users: int
    mean_weight: float
    total_weight: float
    heldout_gain: float | None
    measured_users: int


class Recipes:
    """The recipes of all users."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def save_recipe(self, recipe: Recipe) -> None:
        """Store a recipe, replacing the user's earlier one for the task and bank."""
        key = (recipe.user_id, recipe.task, recipe.bank_id)
        size = RECIPE_ENTRY_BYTES * len(recipe.shares)
        values = {name: getattr(recipe, name) for name in ("user_id", "task", "bank_id", "method", "items_hash")}
        values |= {"bytes": size, "created": recipe.created or utc_now()}
        with self._db.transaction():
            self.remove(*key)
            self._db.insert_row("recipes", values)
            _insert_shares(self._db, "recipe_anchors", key, recipe.shares)

    def get(self, user_id: int, task: str, bank_id: int) -> Recipe | None:
        """The user's recipe for a task on a bank, if there is one."""
        row = self._db.fetch_dict(f"{_SELECT_RECIPE} {_WHERE_KEY}", (user_id, task, bank_id))
        return self._with_shares(row) if row is not None else None

    def of_user(self, user_id: int) -> list[Recipe]:
        """The user's recipes, by task, newest bank first."""
        rows = self._db.fetch_dicts(f"{_SELECT_RECIPE} WHERE user_id = ? ORDER BY task, bank_id DESC", (user_id,))
        return [self._with_shares(row) for row in rows]

    def anchor_totals(self, bank_id: int) -> dict[int, AnchorTotals]:
        """How the bank's anchors are used in recipes, by anchor id; anchors in no recipe are left out."""
        rows = self._db.fetch_tuples(_SELECT_USAGE, (bank_id,))
        return {anchor: AnchorTotals(*values) for anchor, *values in rows}

    def count_users(self) -> int:
        """How many users have a recipe."""
        return int(self._db.fetch_value("SELECT count(DISTINCT user_id) FROM recipes"))

    def has_user(self, name: str) -> bool:
        """Whether the user of this name has a recipe."""
        sql = "SELECT EXISTS (SELECT 1 FROM recipes WHERE user_id = (SELECT id FROM users WHERE name = ?))"
        return bool(self._db.fetch_value(sql, (name,)))

    def user_on_newest_bank(self) -> str | None:
        """The name of some user with a recipe on the newest bank that has recipes; None without recipes."""
        sql = """SELECT name FROM users WHERE id = (
            SELECT user_id FROM recipes WHERE bank_id = (SELECT max(bank_id) FROM recipes) LIMIT 1
        )"""
        name: str | None = self._db.fetch_value(sql)
        return name

    def remove(self, user_id: int, task: str, bank_id: int) -> None:
        """Remove a recipe if it exists."""
        self._db.execute_write(f"DELETE FROM recipes {_WHERE_KEY}", (user_id, task, bank_id))

    def _with_shares(self, row: dict[str, Any]) -> Recipe:
        return Recipe(**row, shares=_load_shares(self._db, "recipe_anchors", _key(row)))


class Stacks:
    """The stacks of all users."""

    def __init__(self, db: Connection, adapters: Adapters) -> None:
        self._db, self._adapters = db, adapters

    def save_stack(self, stack: Stack) -> None:
        """Store a stack in place of the user's earlier one, whose adapter is removed if nothing else uses it."""
        key = (stack.user_id, stack.task, stack.bank_id)
        digest = None if stack.numbers is None else sha256(stack.numbers)
        values = {name: getattr(stack, name) for name in _STACK_COLUMNS}
        values |= {"numbers_sha256": digest, "created": stack.created or utc_now()}
        with self._db.transaction():
            earlier = self.get(*key)
            self._db.execute_write(f"DELETE FROM stacks {_WHERE_KEY}", key)
            self._db.insert_row("stacks", values)
            _insert_shares(self._db, "stack_anchors", key, stack.recipe)
            if earlier is not None:
                self._adapters.remove_if_unreferenced(earlier.digest)

    def get(self, user_id: int, task: str, bank_id: int) -> Stack | None:
        """The user's stack for a task on a bank, if there is one."""
        row = self._db.fetch_dict(f"{_SELECT_STACK} {_WHERE_KEY}", (user_id, task, bank_id))
        return self._with_recipe(row) if row is not None else None

    def of_user(self, user_id: int) -> list[Stack]:
        """The user's stacks, by task, newest bank first."""
        rows = self._db.fetch_dicts(f"{_SELECT_STACK} WHERE user_id = ? ORDER BY task, bank_id DESC", (user_id,))
        return [self._with_recipe(row) for row in rows]

    def count_raised_losses(self, bank_id: int, least: float) -> tuple[int, int]:
        """How many of a bank's stacks have a measured held-out loss, and how many of them raised it.

        Raised means by at least the fraction `least` of the loss before the stack.
        """
        sql = f"""SELECT count(*), total(change < 0 AND abs(change) >= ? * abs(heldout_before))
            FROM ({_SELECT_CHANGES})"""
        ((measured, worse),) = self._db.fetch_tuples(sql, (least, bank_id))
        return measured, int(worse)

    def largest_loss_changes(self, bank_id: int, limit: int, *, best: bool) -> list[tuple[str, float, float]]:
        """(user's name, mean held-out loss in nats a token before the stack, and after it) for a bank's stacks.

        The largest decrease comes first; without `best`, the largest increase.
        """
        order = "DESC" if best else "ASC"
        sql = f"""SELECT name, heldout_before, heldout_after FROM (
            {_SELECT_CHANGES} ORDER BY change {order}, user_id LIMIT ?
        ) JOIN users ON users.id = user_id ORDER BY change {order}, user_id"""
        return self._db.fetch_tuples(sql, (bank_id, limit))

    def verified_numbers(self, stack: Stack) -> bytes:
        """The numbers of a core. Raises IntegrityFault, naming user and task, if they do not match their SHA-256."""
        if stack.numbers is None or stack.is_intact:
            return stack.numbers or b""
        name = self._db.fetch_value("SELECT name FROM users WHERE id = ?", (stack.user_id,))
        raise IntegrityFault(
            f"The stack of {name} for task {stack.task} is damaged: its numbers do not match their SHA-256.",
            hint=("train it again: ", Command("user adapt", str(name), task=stack.task)),
        )

    def remove(self, user_id: int, task: str, bank_id: int) -> None:
        """Remove a stack if it exists, and its adapter if nothing else uses it."""
        stack = self.get(user_id, task, bank_id)
        if stack is None:
            return
        with self._db.transaction():
            self._db.execute_write(f"DELETE FROM stacks {_WHERE_KEY}", (user_id, task, bank_id))
            self._adapters.remove_if_unreferenced(stack.digest)

    def _with_recipe(self, row: dict[str, Any]) -> Stack:
        return Stack(**null_to_nan(row, *_LOSS_COLUMNS), recipe=_load_shares(self._db, "stack_anchors", _key(row)))


def _key(row: dict[str, Any]) -> Key:
    return row["user_id"], row["task"], row["bank_id"]


def _insert_shares(db: Connection, table: str, key: Key, shares: Iterable[AnchorWeight]) -> None:
    columns = "user_id, task, bank_id, position, anchor_id, similarity, weight"
    rows = (
        (*key, position, share.anchor_id, share.similarity, share.weight)
        for position, share in enumerate(round_anchor_weights(shares))
    )
    db.execute_write_many(f"INSERT INTO {table} ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _load_shares(db: Connection, table: str, key: Key) -> tuple[AnchorWeight, ...]:
    sql = f"SELECT anchor_id, similarity, weight FROM {table} {_WHERE_KEY} ORDER BY position"
    return tuple(AnchorWeight(*values) for values in db.fetch_tuples(sql, key))
