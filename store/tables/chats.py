"""Saved conversations, and looking for words in them. Knows neither models nor how a conversation is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import NotFound
from store.connection import Connection
from store.json_columns import dumps, loads
from store.process import now
from store.records import Chat, Message
from store.seals import is_sound, put_seals, sound_row

_CHAT = f"SELECT id, user_id, title, created, {is_sound('chats')} AS sound FROM chats"
_MESSAGE = f"SELECT id, chat_id, role, content, source, created, {is_sound('messages')} AS sound FROM messages"

AROUND = 40  # characters shown on each side of a word that was found
MAX_WORDS = 16

_TURNS = "(SELECT count(*) FROM messages WHERE chat_id = chats.id)"
_HOLDS = """(instr(lower(title), lower({place})) OR EXISTS (
    SELECT 1 FROM messages WHERE chat_id = chats.id AND instr(lower(content), lower({place}))))"""
_FIRST = "SELECT content FROM messages WHERE chat_id = ? AND ({any}) ORDER BY id LIMIT 1"


@dataclass(frozen=True)
class FoundChat:
    """A conversation in a list: how many messages it has and, after a search, a piece of it around what was found."""

    id: int
    title: str
    created: str
    messages: int
    excerpt: str = ""


class Chats:
    """Every user's conversations."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def start(self, user_id: int, title: str) -> Chat:
        """A new, empty conversation."""
        sql = "INSERT INTO chats (user_id, title, created) VALUES (?, ?, ?)"
        with self._db.transaction():
            row = self._db.write(sql, (user_id, title, now())).lastrowid
            assert row is not None
            put_seals(self._db, "chats", "id = ?", (row,))
        return self.get(row)

    def add(self, chat_id: int, role: str, content: str, source: dict[str, Any]) -> Message:
        """Append one turn. `source` may hold people's names as values, never as keys: so they can be forgotten."""
        sql = "INSERT INTO messages (chat_id, role, content, source, created) VALUES (?, ?, ?, ?, ?)"
        with self._db.transaction():
            row = self._db.write(sql, (chat_id, role, content, dumps(source), now())).lastrowid
            put_seals(self._db, "messages", "id = ?", (row,))
        found = self._db.row(f"{_MESSAGE} WHERE id = ?", (row,))
        assert found is not None
        return _message(found)

    def get(self, chat_id: int) -> Chat:
        """The conversation of this number. Raises NotFound."""
        row = self._db.row(f"{_CHAT} WHERE id = ?", (chat_id,))
        if row is None:
            raise NotFound(f"There is no chat {chat_id}.")
        return _chat(row)

    def of_user(self, user_id: int) -> list[Chat]:
        """The user's conversations, newest first."""
        return [_chat(row) for row in self._db.rows(f"{_CHAT} WHERE user_id = ? ORDER BY id DESC", (user_id,))]

    def search(self, user_id: int, text: str = "", *, limit: int = 50) -> list[FoundChat]:
        """The user's `limit` newest conversations that hold every word of `text`, in their titles or messages.

        Capital and small letters are the same; a part of a word is enough; nothing in `text` is query syntax. Without
        words, all conversations.
        """
        readable = text.encode(errors="replace").decode()
        words = list(dict.fromkeys(readable.split()))[:MAX_WORDS]
        forms = [_forms(word) for word in words]
        holding = [f"({' OR '.join(_HOLDS.format(place=f'?{n}') for n in places)})" for places in _places(forms)]
        wanted = " AND ".join(("user_id = ?1", *holding))
        sql = f"SELECT id, title, created, {_TURNS} FROM chats WHERE {wanted} ORDER BY id DESC LIMIT ?2"
        flat = [form for some in forms for form in some]
        rows = self._db.tuples(sql, (user_id, max(0, limit), *flat))
        return [
            FoundChat(number, title, created, turns, self._excerpt(number, words, flat))
            for number, title, created, turns in rows
        ]

    def _excerpt(self, chat_id: int, words: list[str], forms: list[str]) -> str:
        """The first message that holds one of the words, cut around it; nothing where only the title holds them."""
        if not forms:
            return ""
        anyone = " OR ".join("instr(lower(content), lower(?))" for _ in forms)
        content = self._db.value(_FIRST.format(any=anyone), (chat_id, *forms))
        return _around(content, words) if content is not None else ""

    def messages(self, chat_id: int) -> list[Message]:
        """A conversation's turns, in order."""
        rows = self._db.rows(f"{_MESSAGE} WHERE chat_id = ? ORDER BY id", (chat_id,))
        return [_message(row) for row in rows]

    def remove(self, chat_id: int) -> None:
        """Remove a conversation if it is there."""
        self._db.write("DELETE FROM chats WHERE id = ?", (chat_id,))


def _chat(row: dict[str, Any]) -> Chat:
    return Chat(**sound_row("chats", row))


def _message(row: dict[str, Any]) -> Message:
    return Message(**loads(sound_row("messages", row), "source"))


def _places(forms: Iterable[list[str]]) -> Iterable[range]:
    """The numbers of each word's parameters, which follow the user and the limit."""
    first = 3
    for some in forms:
        yield range(first, first + len(some))
        first += len(some)


def _forms(word: str) -> list[str]:
    """What to look for: SQLite knows the two cases of a–z only, so a word with other letters is looked for in each."""
    return [word] if word.isascii() else list(dict.fromkeys((word, word.lower(), word.upper(), word.capitalize())))


def _around(content: str, words: list[str]) -> str:
    """One line of `content` around the first of `words` in it."""
    low = content.lower()
    places = [place for word in words if (place := low.find(word.lower())) >= 0]
    place = min(places, default=0)
    start, end = max(0, place - AROUND), place + AROUND
    piece = " ".join(content[start:end].split())
    return f"{'…' if start else ''}{piece}{'…' if end < len(content) else ''}"
