"""Finds and removes the recipes and stacks that depend on anchors.

A stack depends on the anchors of the recipe that it was trained on. A core (a stack inside factors that the bank's
users share, the bank's basis) depends on all anchors of its bank.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from store.connection import Connection

_AMONG = "anchor_id IN (SELECT value FROM json_each(:anchors))"
_ON_BANK = "bank_id = :bank AND (user_id, task)"
_DEPENDENT_RECIPES = f"{_ON_BANK} IN (SELECT user_id, task FROM recipe_anchors WHERE {_AMONG} AND bank_id = :bank)"
_DEPENDENT_STACKS = f"""{_ON_BANK} IN (
    SELECT user_id, task FROM stack_anchors WHERE {_AMONG} AND bank_id = :bank
    UNION SELECT user_id, task FROM stacks WHERE bank_id = :bank AND numbers IS NOT NULL
)"""


@dataclass(frozen=True)
class AnchorReplacement:
    """A newly trained anchor that replaces anchor number `stale_anchor_id`. `digest` is that of its adapter."""

    stale_anchor_id: int
    user_id: int
    cluster_size: int
    items: int
    digest: str
    loss_first: float | None
    loss_last: float | None


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


def replace_anchors(db: Connection, bank_id: int, replacements: Sequence[AnchorReplacement]) -> None:
    """Replace stale anchors of a bank by trained ones, which get new ids. Call it in a transaction."""
    clusters = dict(db.fetch_tuples("SELECT id, cluster FROM anchors WHERE bank_id = ?", (bank_id,)))
    remove_anchors(db, bank_id, [new.stale_anchor_id for new in replacements])
    columns = "bank_id, user_id, cluster, cluster_size, items, digest, loss_first, loss_last"
    rows = (
        (
            bank_id,
            new.user_id,
            clusters[new.stale_anchor_id],
            new.cluster_size,
            new.items,
            new.digest,
            new.loss_first,
            new.loss_last,
        )
        for new in replacements
    )
    db.execute_write_many(f"INSERT INTO anchors ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _parameters(bank_id: int, anchors: Collection[int]) -> dict[str, object]:
    return {"bank": bank_id, "anchors": json.dumps(list(anchors))}
