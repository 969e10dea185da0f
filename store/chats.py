"""Saved conversations. Knows neither models nor how a conversation is shown."""

from typing import Any

from mta_cli.errors import NotFound
from store.connection import Connection
from store.models import Chat, Message
from store.process import now
from store.rows import dumps, loads

_CHAT = "SELECT id, user_id, title, created FROM chats"
_MESSAGE = "SELECT id, chat_id, role, content, source, created FROM messages"


class Chats:
    """Every user's conversations."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def start(self, user_id: int, title: str) -> Chat:
        """A new, empty conversation."""
        sql = "INSERT INTO chats (user_id, title, created) VALUES (?, ?, ?)"
        row = self._db.write(sql, (user_id, title, now())).lastrowid
        assert row is not None
        return self.get(row)

    def add(self, chat_id: int, role: str, content: str, source: dict[str, Any]) -> Message:
        """Append one turn. `source` may hold people's names as values, never as keys: so they can be forgotten."""
        sql = "INSERT INTO messages (chat_id, role, content, source, created) VALUES (?, ?, ?, ?, ?)"
        row = self._db.write(sql, (chat_id, role, content, dumps(source), now())).lastrowid
        found = self._db.row(f"{_MESSAGE} WHERE id = ?", (row,))
        assert found is not None
        return Message(**loads(found, "source"))

    def get(self, chat_id: int) -> Chat:
        """The conversation of this number. Raises NotFound."""
        row = self._db.row(f"{_CHAT} WHERE id = ?", (chat_id,))
        if row is None:
            raise NotFound(f"There is no chat {chat_id}.")
        return Chat(**row)

    def of_user(self, user_id: int) -> list[Chat]:
        """The user's conversations, newest first."""
        return [Chat(**row) for row in self._db.rows(f"{_CHAT} WHERE user_id = ? ORDER BY id DESC", (user_id,))]

    def messages(self, chat_id: int) -> list[Message]:
        """A conversation's turns, in order."""
        rows = self._db.rows(f"{_MESSAGE} WHERE chat_id = ? ORDER BY id", (chat_id,))
        return [Message(**loads(row, "source")) for row in rows]

    def remove(self, chat_id: int) -> None:
        """Remove a conversation if it is there."""
        self._db.write("DELETE FROM chats WHERE id = ?", (chat_id,))
