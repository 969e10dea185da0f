"""Rows that are not what was stored, and whose they are as far as that can still be read; documents that are none.

Changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from store.connection import Connection
from store.seals import SEALED, is_sound

# Whose a row is: by which query of its user's name, and of its bank's "NAME vN".
_USER = "(SELECT name FROM users WHERE id = {0})"
_OWNERS = {
    "users": "name",
    "neighbours": _USER.format("(SELECT user_id FROM items WHERE id = item_id)"),
    "messages": _USER.format("(SELECT user_id FROM chats WHERE id = chat_id)"),
    **dict.fromkeys(("tasks", "banks", "adapters"), "NULL"),
}
_BANK = "(SELECT name || ' v' || version FROM banks WHERE id = {0})"
_BANKS = {"banks": _BANK.format("banks.id"), "items": "NULL"}
_TASKS = {
    "tasks": "name",
    "adapters": "NULL",
    "users": "NULL",
    "chats": "NULL",
    "messages": "NULL",
    "anchors": "(SELECT task FROM banks WHERE id = bank_id)",
    "neighbours": "(SELECT task FROM banks WHERE id = bank_id)",
}
_KINDS = {
    "users": "user",
    "items": "history item",
    "queries": "held-out query",
    "profiles": "profile",
    "neighbours": "neighbour",
    "recipes": "recipe",
    "stacks": "stack",
    "tasks": "task",
    "banks": "bank",
    "anchors": "anchor",
    "adapters": "record of adapter",
    "chats": "chat",
    "messages": "message",
}


@dataclass(frozen=True)
class Damaged:
    """A damaged row. `where` finds it; `key` names it. `user`, `task` and `bank` ("NAME vN") may be damaged themselves.

    `bank_id` is the number of the bank that it belongs to.
    """

    table: str
    where: str
    key: str
    user: str | None
    task: str | None
    bank: str | None
    bank_id: int | None

    @property
    def words(self) -> str:
        """Which row it is."""
        whose = f" of {self.user}" if self.user is not None and self.table != "users" else ""
        of = f" for task {self.task}" if self.task is not None and self.table not in ("tasks", "banks") else ""
        on = f" on bank {self.bank}" if self.bank is not None and self.table != "banks" else ""
        return f"{_KINDS[self.table]} {self.key}{whose}{of}{on}"


def damaged_rows(db: Connection, only: str | None = None) -> Iterator[Damaged]:
    """Every damaged row, or those of one table, by table and number."""
    for table, (numbers, texts) in SEALED.items():
        if only not in (None, table):
            continue
        columns = (*numbers, *texts)
        keys = ("bank_id", "item_id") if table == "neighbours" else ("rowid",)
        named = {"users": "name", "tasks": "name", "banks": _BANK.format("banks.id"), "adapters": "digest"}
        bank = _BANKS.get(table, _BANK.format("bank_id") if "bank_id" in columns else "NULL")
        number = "banks.id" if table == "banks" else "bank_id" if "bank_id" in columns else "NULL"
        task = _TASKS.get(table, "task")
        told = (named.get(table, "NULL"), _OWNERS.get(table, _USER.format("user_id")), task, bank)
        texts_told = ", ".join(f"CAST({each} AS BLOB)" for each in told)
        # From the table itself: what an index says of a column may be damaged too, or be all that is not.
        literals = ", ".join(f"quote({key})" for key in keys)  # a number that lost a bit may be none any more
        sql = f"""SELECT {literals}, {number}, {texts_told} FROM {table} NOT INDEXED
        WHERE NOT {is_sound(table)} ORDER BY {", ".join(keys)}"""
        for row in db.fetch_tuples(sql):
            values, (bank_id, name, user, of, on) = row[: len(keys)], row[len(keys) :]
            where = " AND ".join(f"{key} IS {value}" for key, value in zip(keys, values, strict=True))
            key = _text(name) or f"number {values[-1]}"
            of_bank = bank_id if isinstance(bank_id, int) else None
            yield Damaged(table, where, key, _text(user), _text(of), _text(on), of_bank)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def damaged_documents(db: Connection) -> Iterator[tuple[str, str, int]]:
    """Records without a seal whose document can not be read: (table, column, row number)."""
    for table in ("runs", "evaluations"):
        for column in ("config", "result"):
            for number, text in db.fetch_tuples(f"SELECT id, {column} FROM {table} WHERE {column} IS NOT NULL"):
                try:
                    json.loads(text)
                except (ValueError, TypeError):
                    yield table, column, number
