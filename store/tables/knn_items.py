"""The items of banks' users that serve as neighbours, with their embeddings. Knows no vectors, only their bytes."""

from __future__ import annotations

from collections.abc import Iterable

from store.connection import Connection
from store.records import Neighbour


class Neighbours:
    """The neighbours of every bank. Rows are deleted with their item, their user and their bank."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def item_ids(self, bank_id: int) -> set[int]:
        """The numbers of a bank's items."""
        return {
            item for (item,) in self._db.fetch_tuples("SELECT item_id FROM neighbours WHERE bank_id = ?", (bank_id,))
        }

    def add_neighbours(self, bank_id: int, vectors: Iterable[tuple[int, bytes]]) -> None:
        """Add items (by number) with the embeddings of their inputs."""
        sql = "INSERT INTO neighbours (bank_id, item_id, vector) VALUES (?, ?, ?)"
        self._db.execute_write_many(sql, ((bank_id, item, vector) for item, vector in vectors))

    def remove_neighbours(self, bank_id: int, items: Iterable[int]) -> None:
        """Remove items (by number) from a bank."""
        self._db.execute_write_many(
            "DELETE FROM neighbours WHERE bank_id = ? AND item_id = ?", ((bank_id, item) for item in items)
        )

    def consenting_neighbours(self, bank_id: int) -> list[Neighbour]:
        """All neighbours of a bank from users who consent to serve others, by item number."""
        sql = """SELECT item_id, user_id, output, vector, items.time FROM neighbours JOIN items ON items.id = item_id
        JOIN users ON users.id = user_id WHERE bank_id = ? AND can_anchor ORDER BY item_id"""
        return [Neighbour(*row) for row in self._db.fetch_tuples(sql, (bank_id,))]

    def count_neighbours(self, bank_id: int) -> int:
        """How many neighbours a bank has."""
        return int(self._db.fetch_value("SELECT count(*) FROM neighbours WHERE bank_id = ?", (bank_id,)))

    def count_by_bank(self, user_id: int) -> dict[tuple[str, int], int]:
        """How many of a user's items are neighbours, by (bank, version)."""
        sql = """SELECT banks.name, version, count(*) FROM items JOIN neighbours ON item_id = items.id
        JOIN banks ON banks.id = bank_id WHERE user_id = ? GROUP BY bank_id"""
        return {(bank, version): count for bank, version, count in self._db.fetch_tuples(sql, (user_id,))}

    def count_users(self, bank_id: int) -> int:
        """The number of users who own a bank's neighbours."""
        sql = """SELECT count(DISTINCT user_id) FROM neighbours JOIN items ON items.id = item_id WHERE bank_id = ?"""
        return int(self._db.fetch_value(sql, (bank_id,)))
