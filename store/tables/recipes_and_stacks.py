"""What is stored of a user's model: the recipe of their fusion and the row of their stack. Knows no tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from mta_cli.errors import IntegrityFault
from store.connection import Connection
from store.json_columns import null_to_nan
from store.process import utc_now
from store.records import AnchorWeight, Recipe, Stack
from store.tables.adapters import Adapters

_WEIGHT_STRUCT = struct.Struct("<Iff")  # anchor id, similarity, weight
_SELECT_RECIPE = "SELECT user_id, task, bank_id, method, shares, created FROM recipes"
_COLUMNS = (
    "user_id",
    "task",
    "bank_id",
    "digest",
    "shots",
    "steps",
    "loss_before",
    "loss_after",
    "recipe",
    "bytes",
    "identity",
    "numbers",
    "heldout_before",
    "heldout_after",
)
_SELECT_STACK = f"SELECT {', '.join(_COLUMNS)}, created FROM stacks"
_WHERE_KEY = "WHERE user_id = ? AND task = ? AND bank_id = ?"
_LOSS_COLUMNS = ("loss_before", "loss_after")


def pack_anchor_weights(shares: Sequence[AnchorWeight]) -> bytes:
    """A recipe's shares, 12 bytes each: anchor id (uint32), similarity and weight (float32), little-endian."""
    return b"".join(_WEIGHT_STRUCT.pack(share.anchor_id, share.similarity, share.weight) for share in shares)


def unpack_anchor_weights(packed: bytes) -> tuple[AnchorWeight, ...]:
    """The shares in `packed`; similarity and weight as float32 kept them. IntegrityFault where these are none."""
    if not isinstance(packed, bytes) or len(packed) % _WEIGHT_STRUCT.size:
        raise IntegrityFault(
            "A recipe is damaged: it is not made of whole shares.", hint="mta user fuse makes it again"
        )
    return tuple(AnchorWeight(*values) for values in _WEIGHT_STRUCT.iter_unpack(packed))


class Recipes:
    """Every user's fusions."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def save_recipe(self, recipe: Recipe) -> None:
        """Store a recipe, in place of the user's earlier one for the task and bank."""
        values = (
            recipe.user_id,
            recipe.task,
            recipe.bank_id,
            recipe.method,
            pack_anchor_weights(recipe.shares),
            recipe.created or utc_now(),
        )
        sql = "REPLACE INTO recipes (user_id, task, bank_id, method, shares, created) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.execute_write(sql, values)

    def get(self, user_id: int, task: str, bank_id: int) -> Recipe | None:
        """The user's recipe for a task on a bank, if there is one."""
        row = self._db.fetch_dict(f"{_SELECT_RECIPE} {_WHERE_KEY}", (user_id, task, bank_id))
        return _recipe_from_row(row) if row is not None else None

    def of_user(self, user_id: int) -> list[Recipe]:
        """The user's recipes, by task, newest bank first."""
        rows = self._db.fetch_dicts(f"{_SELECT_RECIPE} WHERE user_id = ? ORDER BY task, bank_id DESC", (user_id,))
        return [_recipe_from_row(row) for row in rows]

    def recipes_with_losses(self, bank_id: int) -> list[tuple[bytes, float | None, float | None]]:
        """Everybody's packed recipe on a bank, by user, with the held-out losses before and after their stack on it."""
        sql = """SELECT shares, heldout_before, heldout_after FROM recipes
        LEFT JOIN stacks USING (user_id, task, bank_id) WHERE bank_id = ? ORDER BY user_id, task"""
        return [(shares, before, after) for shares, before, after in self._db.fetch_tuples(sql, (bank_id,))]

    def remove(self, user_id: int, task: str, bank_id: int) -> None:
        """Remove a recipe if it is there."""
        self._db.execute_write(f"DELETE FROM recipes {_WHERE_KEY}", (user_id, task, bank_id))


class Stacks:
    """Every user's stacks."""

    def __init__(self, db: Connection, adapters: Adapters) -> None:
        self._db, self._adapters = db, adapters

    def save_stack(self, stack: Stack) -> None:
        """Store a stack, in place of the user's earlier one, whose adapter goes if nothing else uses it."""
        earlier = self.get(stack.user_id, stack.task, stack.bank_id)
        values = [getattr(stack, name) for name in _COLUMNS]
        places = ", ".join("?" * len(values))
        sql = f"REPLACE INTO stacks ({', '.join(_COLUMNS)}, created) VALUES ({places}, ?)"
        with self._db.transaction():
            self._db.execute_write(sql, (*values, stack.created or utc_now()))
            if earlier is not None:
                self._adapters.remove_if_unreferenced(earlier.digest)

    def get(self, user_id: int, task: str, bank_id: int) -> Stack | None:
        """The user's stack for a task on a bank, if there is one."""
        row = self._db.fetch_dict(f"{_SELECT_STACK} {_WHERE_KEY}", (user_id, task, bank_id))
        return _stack_from_row(row) if row is not None else None

    def of_user(self, user_id: int) -> list[Stack]:
        """The user's stacks, by task, newest bank first."""
        rows = self._db.fetch_dicts(f"{_SELECT_STACK} WHERE user_id = ? ORDER BY task, bank_id DESC", (user_id,))
        return [_stack_from_row(row) for row in rows]

    def remove(self, user_id: int, task: str, bank_id: int) -> None:
        """Remove a stack if it is there, and its adapter if nothing else uses it."""
        stack = self.get(user_id, task, bank_id)
        if stack is None:
            return
        with self._db.transaction():
            self._db.execute_write(f"DELETE FROM stacks {_WHERE_KEY}", (user_id, task, bank_id))
            self._adapters.remove_if_unreferenced(stack.digest)


def _recipe_from_row(row: dict[str, Any]) -> Recipe:
    packed = row.pop("shares")
    return Recipe(**row, shares=unpack_anchor_weights(packed), bytes=len(packed))


def _stack_from_row(row: dict[str, Any]) -> Stack:
    return Stack(**null_to_nan(row, *_LOSS_COLUMNS))
