"""Saved conversations and search in them. Knows neither models nor display."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mta_cli.errors import NotFound
from store.columns import dump_json, load_json_columns, utc_now
from store.connection import Connection
from store.names import FORGOTTEN_NAME
from store.records import Chat, Message

_SELECT_CHAT = "SELECT id, user_id, title, created FROM chats"
_SELECT_MESSAGE = "SELECT id, chat_id, role, content, source, created FROM messages"
_SELECT_MESSAGE_ANCHORS = """SELECT message_id, users.name FROM message_anchors
JOIN messages ON messages.id = message_id LEFT JOIN users ON users.id = message_anchors.user_id
WHERE {which} ORDER BY message_id, position"""

EXCERPT_CONTEXT_CHARS = 40  # characters shown on each side of a found word
MAX_SEARCH_WORDS = 16

_MESSAGE_COUNT = "(SELECT count(*) FROM messages WHERE chat_id = chats.id)"
_SELECT_RECENT = """SELECT chats.id, users.name, chats.title, banks.task, coalesce(last.created, chats.created)
FROM chats JOIN users ON users.id = chats.user_id
LEFT JOIN messages AS last
    ON last.id = (SELECT max(id) FROM messages WHERE chat_id = chats.id AND role = 'assistant')
LEFT JOIN banks
    ON banks.name = json_extract(last.source, '$.bank') AND banks.version = json_extract(last.source, '$.version')
ORDER BY chats.id DESC LIMIT ?"""
_CONTAINS_WORD = """(instr(unicode_lower(title), {place}) OR EXISTS (
    SELECT 1 FROM messages WHERE chat_id = chats.id AND instr(unicode_lower(content), {place})))"""
_SELECT_FIRST_MATCH = "SELECT content FROM messages WHERE chat_id = ? AND ({any}) ORDER BY id LIMIT 1"


@dataclass(frozen=True)
class ChatSummary:
    """A conversation in a list: its number of messages and, after a search, an excerpt around the match."""

    id: int
    title: str
    created: str
    messages: int
    excerpt: str = ""


@dataclass(frozen=True)
class RecentChat:
    """A conversation of any user.

    `task` is the task of the bank that answered last, None without such an answer. `answered` is when the last answer
    was given, or when the conversation started if it has no answer.
    """

    id: int
    user: str
    title: str
    task: str | None
    answered: str


class Chats:
    """The conversations of all users."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def start_chat(self, user_id: int, title: str) -> Chat:
        """Store a new, empty conversation and return it."""
        return self.get(self._db.insert_row("chats", {"user_id": user_id, "title": title, "created": utc_now()}))

    def add_message(self, chat_id: int, role: str, content: str, source: dict[str, Any]) -> Message:
        """Append one turn to a conversation.

        The users' names in `source["anchors"]` are stored as foreign keys, so that removing a user removes their name
        from all messages.
        """
        names = source.get("anchors") or []
        document = {**source, "anchors": []} if names else source
        values = {"chat_id": chat_id, "role": role, "content": content, "source": dump_json(document)}
        with self._db.transaction():
            row = self._db.insert_row("messages", {**values, "created": utc_now()})
            anchors = "INSERT INTO message_anchors VALUES (?, ?, (SELECT id FROM users WHERE name = ?))"
            self._db.execute_write_many(anchors, ((row, position, name) for position, name in enumerate(names)))
        return self._messages("messages.id = ?", row)[0]

    def get(self, chat_id: int) -> Chat:
        """The conversation of this number. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_CHAT} WHERE id = ?", (chat_id,))
        if row is None:
            raise NotFound(
                f"There is no chat {chat_id}.",
                hint="it may have been removed; /history at the prompt of a chat lists the stored chats",
            )
        return Chat(**row)

    def of_user(self, user_id: int) -> list[Chat]:
        """The user's conversations, newest first."""
        rows = self._db.fetch_dicts(f"{_SELECT_CHAT} WHERE user_id = ? ORDER BY id DESC", (user_id,))
        return [Chat(**row) for row in rows]

    def recent_chats(self, limit: int) -> list[RecentChat]:
        """The `limit` newest conversations of all users, newest first."""
        return [RecentChat(*row) for row in self._db.fetch_tuples(_SELECT_RECENT, (max(0, limit),))]

    def search_chats(self, user_id: int, text: str = "", *, limit: int = 50) -> list[ChatSummary]:
        """The user's newest conversations, at most `limit`, with every word of `text` in their titles or messages.

        Case is ignored, a part of a word matches, and `text` has no query syntax. Without words all conversations
        match.
        """
        readable = text.encode(errors="replace").decode()
        words = list(dict.fromkeys(readable.lower().split()))[:MAX_SEARCH_WORDS]
        conditions = [_CONTAINS_WORD.format(place=f"?{number}") for number, _ in enumerate(words, 3)]
        wanted = " AND ".join(("user_id = ?1", *conditions))
        sql = f"SELECT id, title, created, {_MESSAGE_COUNT} FROM chats WHERE {wanted} ORDER BY id DESC LIMIT ?2"
        rows = self._db.fetch_tuples(sql, (user_id, max(0, limit), *words))
        return [
            ChatSummary(number, title, created, turns, self._excerpt(number, words))
            for number, title, created, turns in rows
        ]

    def _excerpt(self, chat_id: int, words: list[str]) -> str:
        """An excerpt around the first message with one of the words; empty if only the title has them."""
        if not words:
            return ""
        any_word = " OR ".join("instr(unicode_lower(content), ?)" for _ in words)
        content = self._db.fetch_value(_SELECT_FIRST_MATCH.format(any=any_word), (chat_id, *words))
        return _excerpt_around(content, words) if content is not None else ""

    def messages(self, chat_id: int) -> list[Message]:
        """A conversation's turns, in order."""
        return self._messages("chat_id = ?", chat_id)

    def _messages(self, which: str, number: int) -> list[Message]:
        rows = self._db.fetch_dicts(f"{_SELECT_MESSAGE} WHERE {which} ORDER BY id", (number,))
        anchors: dict[int, list[str]] = {}
        for message_id, name in self._db.fetch_tuples(_SELECT_MESSAGE_ANCHORS.format(which=which), (number,)):
            anchors.setdefault(message_id, []).append(FORGOTTEN_NAME if name is None else name)
        return [_message_from_row(row, anchors.get(row["id"])) for row in rows]

    def remove(self, chat_id: int) -> None:
        """Remove a conversation if it exists."""
        self._db.execute_write("DELETE FROM chats WHERE id = ?", (chat_id,))


def _message_from_row(row: dict[str, Any], anchors: list[str] | None) -> Message:
    found = load_json_columns(row, "source")
    return Message(**found if anchors is None else {**found, "source": {**found["source"], "anchors": anchors}})


def _excerpt_around(content: str, words: list[str]) -> str:
    low = content.lower()
    places = [place for word in words if (place := low.find(word)) >= 0]
    place = min(places, default=0)
    start, end = max(0, place - EXCERPT_CONTEXT_CHARS), place + EXCERPT_CONTEXT_CHARS
    piece = " ".join(content[start:end].split())
    return f"{'…' if start else ''}{piece}{'…' if end < len(content) else ''}"
