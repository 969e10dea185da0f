"""The items that banks' label memories use as neighbours, with the bytes of their embeddings."""

from __future__ import annotations

from collections.abc import Iterable

from store.connection import Connection
from store.records import Neighbour


class Neighbours:
    """The neighbours of all banks. A row is deleted with its item, its user or its bank."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def item_ids(self, bank_id: int) -> set[int]:
        """The ids of the items that are a bank's neighbours."""
        return {
            item for (item,) in self._db.fetch_tuples("SELECT item_id FROM neighbours WHERE bank_id = ?", (bank_id,))
        }

    def add_neighbours(self, bank_id: int, vectors: Iterable[tuple[int, bytes]]) -> None:
        """Add items to a bank's neighbours, as pairs of item id and embedding of the input."""
        sql = "INSERT INTO neighbours (bank_id, item_id, vector) VALUES (?, ?, ?)"
        self._db.execute_write_many(sql, ((bank_id, item, vector) for item, vector in vectors))

    def remove_neighbours(self, bank_id: int, items: Iterable[int]) -> None:
        """Remove the items with these ids from a bank's neighbours."""
        self._db.execute_write_many(
            "DELETE FROM neighbours WHERE bank_id = ? AND item_id = ?", ((bank_id, item) for item in items)
        )

    def consenting_neighbours(self, bank_id: int) -> list[Neighbour]:
        """All neighbours of a bank from users who consent to serve others, by item id."""
        sql = """SELECT item_id, user_id, output, vector, items.time FROM neighbours JOIN items ON items.id = item_id
        JOIN users ON users.id = user_id WHERE bank_id = ? AND can_anchor ORDER BY item_id"""
        return [Neighbour(*row) for row in self._db.fetch_tuples(sql, (bank_id,))]

    def count_neighbours(self, bank_id: int) -> int:
        """How many neighbours a bank has."""
        return int(self._db.fetch_value("SELECT count(*) FROM neighbours WHERE bank_id = ?", (bank_id,)))

    def count_by_bank(self, user_id: int) -> dict[tuple[str, int], int]:
        """How many of a user's items are neighbours in each bank, by (bank, version)."""
        sql = """SELECT banks.name, version, count(*) FROM items JOIN neighbours ON item_id = items.id
        JOIN banks ON banks.id = bank_id WHERE user_id = ? GROUP BY bank_id"""
        return {(bank, version): count for bank, version, count in self._db.fetch_tuples(sql, (user_id,))}

    def count_users(self, bank_id: int) -> int:
        """The number of users who own a bank's neighbours."""
        sql = """SELECT count(DISTINCT user_id) FROM neighbours JOIN items ON items.id = item_id WHERE bank_id = ?"""
        return int(self._db.fetch_value(sql, (bank_id,)))
