"""Seals: a checksum of each row that answers rest on, so that a row that changed by itself is never used.

SQLite keeps none. A seal covers the row's number and owner too, so that rows in each other's places are found. What is
sealed is what reaches a model, chooses one, or says whose something is; records of what was done or measured are not.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mta_cli.errors import IntegrityFault

if TYPE_CHECKING:
    import sqlite3

    from store.connection import Connection

SEALED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "users": (("id", "can_anchor"), ("name", "created")),
    "items": (("id", "user_id"), ("key", "task", "input", "output", "time")),
    "queries": (("id", "user_id"), ("key", "task", "input", "gold", "time")),
    "profiles": (("user_id", "total", "items", "last_item"), ("task", "embedder")),
    "neighbours": (("bank_id", "item_id", "vector"), ()),
    "recipes": (("user_id", "bank_id", "shares"), ("task", "method", "created")),
    "stacks": (
        (
            "user_id",
            "bank_id",
            "shots",
            "steps",
            "loss_before",
            "loss_after",
            "recipe",
            "bytes",
            "numbers",
            "heldout_before",
            "heldout_after",
        ),
        ("task", "digest", "created", "identity"),
    ),
    "tasks": ((), ("name", "toml")),
    "banks": (
        ("id", "version", "seed", "tokens", "seconds"),
        (
            "name",
            "key",
            "task",
            "base",
            "embedder",
            "task_adapter",
            "status",
            "config",
            "created",
            "purpose",
            "basis",
            "kernel",
        ),
    ),
    "anchors": (
        ("id", "bank_id", "user_id", "cluster", "cluster_size", "items", "loss_first", "loss_last", "stale"),
        ("digest",),
    ),
    "adapters": (
        ("rank", "alpha", "seed", "bytes", "tokens", "seconds", "loss_first", "loss_last"),
        (
            "digest",
            "kind",
            "base",
            "task_adapter",
            "targets",
            "placement",
            "dtype",
            "data_hash",
            "config",
            "versions",
            "created",
        ),
    ),
    "chats": (("id", "user_id"), ("title", "created")),
    "messages": (("id", "chat_id"), ("role", "content", "created")),
}
"""Sealed tables: columns of numbers and bytes, and columns of text."""

REMEDY = "mta doctor says whose it is; mta doctor --repair drops it and says how to make it again"


def teach(conn: sqlite3.Connection) -> None:
    """Give a connection the function `seal` of SQL."""
    conn.create_function("seal", -1, _seal, deterministic=True)


def add_seals(conn: sqlite3.Connection) -> None:
    """Give every sealed table its seals. Raises IntegrityFault, before anything is sealed, for a damaged database."""
    for (line,) in conn.execute("PRAGMA integrity_check(1)").fetchall():
        if line != "ok":
            hint = "restore it from a copy, or mta doctor --repair"
            raise IntegrityFault(f"registry.db is damaged: {line}", hint=hint)
    teach(conn)
    for table in SEALED:
        conn.execute(f"ALTER TABLE {table} ADD COLUMN seal INTEGER")
        conn.execute(f"UPDATE {table} SET seal = {seal_of(table)}")


def seal_of(table: str, places: Mapping[str, str] | None = None) -> str:
    """The seal of a row as SQL, from its columns or, by their names, from other `places` in the statement."""
    numbers, texts = SEALED[table]
    where = places if places is not None else {name: f"{table}.{name}" for name in (*numbers, *texts)}
    # As bytes, for a text that lost a bit may be none any more.
    values = [*(where[name] for name in numbers), *(f"CAST({where[name]} AS BLOB)" for name in texts)]
    return f"seal('{table}', {', '.join(values)})"


def is_sound(table: str) -> str:
    """Whether a row is what was stored, as SQL: its seal is right, and no text became a BLOB of the same bytes."""
    kinds = (f"typeof({table}.{name}) IN ('text', 'null')" for name in SEALED[table][1])
    return f"({' AND '.join((f'{table}.seal IS {seal_of(table)}', *kinds))})"


def put_seals(db: Connection, table: str, where: str, parameters: Sequence[Any]) -> None:
    """Seal rows that were just written."""
    db.execute_write(f"UPDATE {table} SET seal = {seal_of(table)} WHERE {where}", parameters)


def amend(db: Connection, table: str, change: str, where: str, parameters: Mapping[str, Any]) -> None:
    """Change rows that have an `id` and seal them anew. Raises IntegrityFault for one that is not what was stored."""
    with db.transaction():
        numbers = sound(
            table, db.fetch_tuples(f"SELECT id, {is_sound(table)} FROM {table} WHERE {where}", parameters), 0
        )
        rows = [{**parameters, "this": number} for (number,) in numbers]
        db.execute_write_many(f"UPDATE {table} SET {change} WHERE id = :this", rows)
        db.execute_write_many(f"UPDATE {table} SET seal = {seal_of(table)} WHERE id = ?", numbers)


def sound(table: str, rows: Sequence[tuple[Any, ...]], owner: int) -> list[tuple[Any, ...]]:
    """Rows without their last column, which says whether they are sound. Raises IntegrityFault, naming the `owner`.

    `owner` is the place of the number that says whose the row is.
    """
    for row in rows:
        if not row[-1]:
            raise damaged(table, row[owner])
    return [row[:-1] for row in rows]


def sound_row(table: str, row: dict[str, Any]) -> dict[str, Any]:
    """The same for a row by column name, in which `sound` says it."""
    if not row.pop("sound"):
        owners = ("user_id", "bank_id", "chat_id", "name", "id", "digest")
        raise damaged(table, next(row[name] for name in owners if row.get(name) is not None))
    return row


def damaged(table: str, owner: object) -> IntegrityFault:
    """What is said of a row that is not what was stored."""
    kind = {"users": "user", "banks": "bank", "anchors": "bank", "neighbours": "item", "messages": "chat"}.get(table)
    whose = f"of {kind or 'user'} number {owner}" if isinstance(owner, int) else f"of {str(owner)[:80]!r}"
    return IntegrityFault(f"A row of {table}, {whose}, is damaged: it is not what was stored.", hint=REMEDY)


def _seal(*values: Any) -> int:
    return zlib.crc32(b"\0".join([value if type(value) is bytes else repr(value).encode() for value in values]))
