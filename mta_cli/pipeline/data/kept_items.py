"""History items that users keep from conversations. Their key is a hash of the time and the texts."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from store.records import Item, NewItem


def item_from_exchange(task: str, question: str, answer: str) -> NewItem:
    """A new history item with the current time, from an exchange of a conversation."""
    from store.records import NewItem

    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="seconds")  # the form that imports use
    return NewItem(_kept_key(now, question, answer), task, question, answer, now)


def kept_from_chat_at(item: Item) -> str:
    """The time at which the item was kept from a conversation; empty if it was added in another way."""
    known = item.time is not None and item.key == _kept_key(item.time, item.input, item.output)
    return item.time if known and item.time is not None else ""


def _kept_key(time: str, question: str, answer: str) -> str:
    content = "\0".join((time, question, answer))
    return f"chat-{sha256(content.encode()).hexdigest()[:16]}"
