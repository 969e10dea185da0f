"""What rests on anchors: whose recipes and stacks, and how anchors leave a bank together with it.

A stack rests on the recipe that it was trained on. A core rests on all anchors of its bank, by the bank's basis.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from store.connection import Connection
from store.tables.recipes_and_stacks import unpack_anchor_weights

_RECIPE_COLUMNS = (("stacks", "recipe"), ("recipes", "shares"))
DependentRow = tuple[str, int, str]
"""(table, user id, task)"""


@dataclass(frozen=True)
class AnchorReplacement:
    """A trained anchor in the place of the one whose number is `stale`. `digest`: its meta-LoRA, which is stored."""

    stale_anchor_id: int
    user_id: int
    cluster_size: int
    items: int
    digest: str
    loss_first: float | None
    loss_last: float | None


def find_dependent_users(db: Connection, bank_id: int, anchors: Collection[int]) -> list[str]:
    """The names of everybody who has a recipe or stack on a bank that rests on any of these anchors, sorted."""
    users = {user for _, user, _ in _dependent_rows(db, bank_id, anchors)}
    names = db.fetch_tuples("SELECT id, name FROM users ORDER BY name") if users else []
    return [name for user, name in names if user in users]


def remove_anchors(db: Connection, bank_id: int, anchors: Collection[int]) -> None:
    """Take anchors out of a bank, with its basis and the recipes and stacks that rest on them. In a transaction."""
    if not anchors:
        return
    for table, user_id, task in _dependent_rows(db, bank_id, anchors):
        db.execute_write(
            f"DELETE FROM {table} WHERE user_id = ? AND task = ? AND bank_id = ?", (user_id, task, bank_id)
        )
    db.execute_write("UPDATE banks SET basis = NULL WHERE id = ?", (bank_id,))
    db.execute_write_many("DELETE FROM anchors WHERE id = ? AND bank_id = ?", ((number, bank_id) for number in anchors))


def replace_anchors(db: Connection, bank_id: int, replacements: Sequence[AnchorReplacement]) -> None:
    """Put trained anchors in the places of stale ones, under new numbers. In a transaction.

    They get theirs before those of stale ones are free, so no recipe can mean an anchor that it was not made for.
    """
    columns = "bank_id, user_id, cluster, cluster_size, items, digest, loss_first, loss_last"
    insert = f"INSERT INTO anchors ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
    clusters = dict(db.fetch_tuples("SELECT id, cluster FROM anchors WHERE bank_id = ?", (bank_id,)))
    taken: list[tuple[int, int | None]] = []
    for new in replacements:
        beside = -1 - new.stale_anchor_id  # two anchors of a bank never stand in one place
        values = (new.user_id, beside, new.cluster_size, new.items, new.digest, new.loss_first, new.loss_last)
        number = db.execute_write(insert, (bank_id, *values)).lastrowid
        taken.append((clusters[new.stale_anchor_id], number))
    remove_anchors(db, bank_id, [new.stale_anchor_id for new in replacements])
    db.execute_write_many("UPDATE anchors SET cluster = ? WHERE id = ?", taken)


def _dependent_rows(db: Connection, bank_id: int, anchors: Collection[int]) -> Iterable[DependentRow]:
    """The recipes and stacks of a bank that rest on any of these anchors."""
    wanted = set(anchors)
    if not wanted:
        return []
    found: list[DependentRow] = []
    for table, column in _RECIPE_COLUMNS:
        core = "numbers IS NOT NULL" if table == "stacks" else "0"
        rows = db.fetch_tuples(f"SELECT user_id, task, {column}, {core} FROM {table} WHERE bank_id = ?", (bank_id,))
        for user_id, task, packed, on_all in rows:
            if on_all or wanted.intersection(share.anchor_id for share in unpack_anchor_weights(packed)):
                found.append((table, user_id, task))
    return found
