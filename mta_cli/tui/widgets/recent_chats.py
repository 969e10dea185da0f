"""A list of the newest conversations of all users."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.widgets import OptionList

from mta_cli.text.formatting import format_age
from mta_cli.tui.text import MISSING_VALUE, line_text
from mta_cli.tui.widgets.charts.canvas import truncate_line

if TYPE_CHECKING:
    from store.tables.chats import RecentChat


class RecentChats(OptionList):
    """One line for each conversation of `chats`; hidden without any."""

    HELP: ClassVar[str] = "The newest conversations of all users. Enter goes on with one, and selects its user."
    DEFAULT_CSS = """
    RecentChats {
        display: none;
        height: auto;
        max-height: 100%;
        border: round $surface-lighten-2;
        border-title-color: $text-muted;
        background: transparent;
        padding: 0 1;
    }
    RecentChats:focus {
        border: round $primary;
    }
    """

    def __init__(self, *, how: str, id: str | None = None) -> None:
        super().__init__(id=id)
        self.chats: list[RecentChat] = []
        self.border_title = f"Recent conversations · {how}"

    def show_chats(self, chats: Sequence[RecentChat]) -> None:
        """List these instead."""
        if list(chats) == self.chats:
            return
        self.chats = list(chats)
        self.clear_options()
        now = datetime.now(UTC)
        self.add_options([_chat_line(chat, now) for chat in chats])
        self.highlighted = 0 if chats else None


def _chat_line(chat: RecentChat, now: datetime) -> Text:
    """User, task, age, and the first words."""
    age = format_age(chat.answered, now) or ""
    columns = ((chat.user, 14, "bold"), (chat.task or MISSING_VALUE, 10, ""), (age, 13, "dim"))  # text, cells, style
    line = Text(no_wrap=True, overflow="ellipsis")
    for text, width, style in columns:
        cell = Text(truncate_line(text, width), style)
        cell.pad_right(width - cell.cell_len + 2)
        line.append_text(cell)
    return line.append_text(line_text(chat.title))
