"""The prompt of a question or a conversation: the user's items in it, and what is left out if it is too long."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from mta_cli.errors import BadInput, Flag
from mta_cli.pipeline.data.formats.fields import text_fault

if TYPE_CHECKING:
    from mta_cli.engine.text.prompts import HistoryExample
    from mta_cli.pipeline.data.examples import PromptRowBuilder

MAX_MESSAGE_CHARS = 1_000_000  # characters; a longer message takes minutes to tokenise and fits no window

Message = dict[str, str]


class PromptTooLong(BadInput):
    """The prompt leaves no room for an answer, even without history items. `tokens` is its length in tokens."""

    def __init__(self, tokens: int, room: int, base: str) -> None:
        super().__init__(
            f"The message makes a prompt of {tokens} tokens, but {base} has room for only {room}.",
            hint=("Shorten the message, or lower ", Flag("max_tokens"), "."),
        )
        self.tokens = tokens


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt's token ids, the history items in it, and what was left out to fit the window.

    `dropped_messages` counts the oldest messages left out, always a question with its answer.
    """

    ids: list[int]
    shown: tuple[HistoryExample, ...] = ()
    dropped_messages: int = 0
    dropped_items: int = 0


@dataclass(frozen=True)
class PromptRoom:
    """The token limits of a prompt with history items and of one without. `base` is the name of the base."""

    with_items: int
    without_items: int
    base: str


def fit_question(
    rows: PromptRowBuilder,
    user_id: int | None,
    text: str,
    room: PromptRoom,
    before: tuple[str | None, int] | None = None,
) -> FittedPrompt:
    """The task's prompt for `text`, with as many of the user's nearest items as fit.

    Items known to be later than `before` (time, item id) are left out. Raises PromptTooLong.
    """
    check_message(text)
    found = [] if user_id is None else rows.retrieve_history(user_id, text, rows.history_items, before=before)
    return _fit_items(lambda items: rows.prompter.prompt_ids(text, items[0]), [found], room)


def fit_conversation(
    rows: PromptRowBuilder,
    user_id: int | None,
    messages: Sequence[Message],
    room: PromptRoom,
    *,
    drop_exchanges: bool,
    before: tuple[str | None, int] | None = None,
) -> FittedPrompt:
    """The prompt of a conversation whose last message is to be answered.

    Each user message is filled into the task's prompt, as in training, unless the task has labels. Before each user
    message come the user's nearest items that the prompt does not show yet, so that each answer has examples on its
    topic. Earlier turns keep their tokens, so their cache stays valid. With `drop_exchanges`, the oldest exchanges are
    left out before any item; system messages at the beginning always stay. Items known to be later than `before`
    (time, item id) are left out. Raises PromptTooLong.
    """
    asked = [place for place, message in enumerate(messages) if message["role"] == "user"]
    for message in messages:
        if message["content"].strip() or message is messages[-1]:  # an earlier answer may have been empty
            check_message(message["content"])

    def prompt_ids(kept: Sequence[Message], items: Sequence[Sequence[HistoryExample]]) -> list[int]:
        if not rows.task.labels:
            kept = [
                {**one, "content": rows.task.fill_prompt(one["content"])} if one["role"] == "user" else one
                for one in kept
            ]
        return rows.prompter.chat_ids(kept, items)

    def kept_from(exchange: int) -> list[Message]:
        return [*messages[: asked[0]], *messages[asked[exchange] :]]

    @cache
    def nearest_to(text: str, is_first: bool) -> list[HistoryExample]:
        if user_id is None:
            return []
        # A follow-up such as "It did not help" shows matching items only; the first message always shows items.
        return rows.retrieve_history(user_id, text, rows.history_items, before=before, fill=is_first)

    def nearest_items(kept: Sequence[Message]) -> list[list[HistoryExample]]:
        found: list[list[HistoryExample]] = []
        known: set[HistoryExample] = set()
        for message in kept:
            if message["role"] == "user":
                found.append([item for item in nearest_to(message["content"], not found) if item not in known])
                known.update(found[-1])
        return found

    def fits(exchange: int) -> bool:
        kept = kept_from(exchange)
        return len(prompt_ids(kept, nearest_items(kept))) <= room.with_items

    first = 0
    if drop_exchanges:
        first = min(bisect_left(range(len(asked)), True, key=fits), len(asked) - 1)
    kept = kept_from(first)
    fitted = _fit_items(lambda items: prompt_ids(kept, items), nearest_items(kept), room)
    return FittedPrompt(fitted.ids, fitted.shown, len(messages) - len(kept), fitted.dropped_items)


def _fit_items(
    make_ids: Callable[[list[list[HistoryExample]]], list[int]], items: list[list[HistoryExample]], room: PromptRoom
) -> FittedPrompt:
    """The prompt with as many of `items` [messages, items] as fit; the oldest message's items are dropped first."""
    count = sum(map(len, items))
    while True:
        ids, left = make_ids(items), [message for message in items if message]
        if len(ids) <= (room.with_items if left else room.without_items):
            shown = tuple(item for message in reversed(items) for item in message)
            return FittedPrompt(ids, shown, 0, count - len(shown))
        if not left:
            raise PromptTooLong(len(ids), room.without_items, room.base)
        left[0].pop()


def check_message(text: str) -> None:
    """Raise BadInput for a message that is empty, longer than any window, or not text."""
    if not text.strip():
        raise BadInput("The message is empty.", hint="Write what you want to ask.")
    if len(text) > MAX_MESSAGE_CHARS:
        raise BadInput(f"The message has {len(text):,} characters; the most is {MAX_MESSAGE_CHARS:,}.")
    if fault := text_fault(text):
        raise BadInput(f"The message {fault}.")
