"""Finds and removes the recipes and stacks that depend on anchors.

A stack depends on the anchors of the recipe that it was trained on. A core (a stack inside factors that the bank's
users share, the bank's basis) depends on all anchors of its bank.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from store.connection import Connection
from store.records import Anchor

_AMONG = "anchor_id IN (SELECT value FROM json_each(:anchors))"
_ON_BANK = "bank_id = :bank AND (user_id, task)"
_DEPENDENT_RECIPES = f"{_ON_BANK} IN (SELECT user_id, task FROM recipe_anchors WHERE {_AMONG} AND bank_id = :bank)"
_DEPENDENT_STACKS = f"""{_ON_BANK} IN (
    SELECT user_id, task FROM stack_anchors WHERE {_AMONG} AND bank_id = :bank
    UNION SELECT user_id, task FROM stacks WHERE bank_id = :bank AND numbers IS NOT NULL
)"""


def find_dependent_users(db: Connection, bank_id: int, anchors: Collection[int]) -> list[str]:
    """The names of users, sorted, with a recipe or stack on the bank that depends on any of these anchors."""
    if not anchors:
        return []
    sql = f"""SELECT name FROM users WHERE id IN (
        SELECT user_id FROM recipes WHERE {_DEPENDENT_RECIPES}
        UNION SELECT user_id FROM stacks WHERE {_DEPENDENT_STACKS}
    ) ORDER BY name"""
    return [name for (name,) in db.fetch_tuples(sql, _parameters(bank_id, anchors))]


def remove_anchors(db: Connection, bank_id: int, anchors: Collection[int]) -> None:
    """Remove anchors from a bank, with its basis and the recipes and stacks that depend on them.

    Call it in a transaction.
    """
    if not anchors:
        return
    parameters = _parameters(bank_id, anchors)
    db.execute_write(f"DELETE FROM stacks WHERE {_DEPENDENT_STACKS}", parameters)
    db.execute_write(f"DELETE FROM recipes WHERE {_DEPENDENT_RECIPES}", parameters)
    db.execute_write("UPDATE banks SET basis = NULL WHERE id = ?", (bank_id,))
    db.execute_write_many("DELETE FROM anchors WHERE id = ? AND bank_id = ?", ((number, bank_id) for number in anchors))


def replace_anchors(db: Connection, bank_id: int, replacements: Sequence[Anchor]) -> None:
    """Replace the stale anchors of a bank that have the ids of `replacements` by these, which get new ids.

    Call it in a transaction.
    """
    remove_anchors(db, bank_id, [new.id for new in replacements])
    columns = "bank_id, user_id, cluster, cluster_size, items, digest, loss_first, loss_last"
    rows = (
        (bank_id, new.user_id, new.cluster, new.cluster_size, new.items, new.digest, new.loss_first, new.loss_last)
        for new in replacements
    )
    db.execute_write_many(f"INSERT INTO anchors ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _parameters(bank_id: int, anchors: Collection[int]) -> dict[str, object]:
    return {"bank": bank_id, "anchors": json.dumps(list(anchors))}
