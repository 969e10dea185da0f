"""Mails of an import in a temporary database, so that replies find the mails that they answer, wherever these are.

Knows no mail format.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

_SCHEMA = """
CREATE TABLE IF NOT EXISTS mails (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, mine INTEGER NOT NULL, answered TEXT NOT NULL, subject TEXT NOT NULL,
    text TEXT, time TEXT, file TEXT NOT NULL, record INTEGER
)
"""
_INSERT = """INSERT INTO mails (id, mine, answered, subject, text, time, file, record)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_COLUMNS = "id, mine, answered, subject, text, time, file, record"


class StagedMail(NamedTuple):
    """A mail, the user's own (`mine`) or a received one; `answered` is the id of the mail that it answers.

    `id` and `answered` are empty if the mail has none.
    """

    id: str
    mine: bool
    answered: str
    subject: str
    text: str | None
    time: str | None
    file: str
    record: int | None


class StagedMails:
    """Mails in the temporary database of staged records; of mails with the same id the first is kept."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._conn.execute(_SCHEMA)

    def add(self, mail: StagedMail) -> None:
        """Add a mail, unless there is one with its id."""
        self._conn.execute(_INSERT, (mail.id or None, *mail[1:]))

    def find(self, key: str) -> StagedMail | None:
        """The mail with this id; None if there is none."""
        row = self._conn.execute(f"SELECT {_COLUMNS} FROM mails WHERE id = ?", (key,)).fetchone()
        return None if row is None else _mail(row)

    def replies(self) -> Iterator[StagedMail]:
        """The user's own replies, in the order of the file."""
        query = f"SELECT {_COLUMNS} FROM mails WHERE mine AND answered != '' ORDER BY number"
        return map(_mail, self._conn.execute(query))


def _mail(row: tuple[str | None, int, str, str, str | None, str | None, str, int | None]) -> StagedMail:
    return StagedMail(row[0] or "", bool(row[1]), *row[2:])
