"""A titled list that shows as many entries as fit; the arrow keys continue into the next list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from mta_cli.tui.text import line_text


@dataclass(frozen=True)
class Entry:
    """An entry of a list: `draw` returns its line for a width in cells; `target` says what it opens."""

    key: str
    draw: Callable[[int], Text]
    target: object


class EntryList(OptionList):
    """A list of entries under a title, hidden without entries. It scrolls only if its style sets a height."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Open", id="entries.open", tooltip="Open the entry's screen"),
    ]

    class Opened(Message):
        """An entry was opened by Enter or a click."""

        def __init__(self, entry: Entry) -> None:
            super().__init__()
            self.entry = entry

    def __init__(self, title: str, id: str) -> None:
        super().__init__(id=id, markup=False)
        self.border_title = line_text(title)
        self._entries: tuple[Entry, ...] = ()
        self.display = False

    @property
    def keys(self) -> list[str]:
        """The keys of all entries, including entries that do not fit."""
        return [entry.key for entry in self._entries]

    def show_entries(self, entries: Sequence[Entry], title: str | None = None) -> None:
        """Replace the entries. In a focused list the cursor stays on its entry if that still exists."""
        self._entries = tuple(entries)
        self.display = bool(entries)
        self.styles.max_height = len(entries) + 1  # one line for the title
        if title is not None:
            self.border_title = line_text(title)
        self._draw()

    def on_resize(self, event: Resize) -> None:
        """Fit lines and entries to the new size."""
        self._draw()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Send a message about the opened entry."""
        event.stop()
        self.post_message(self.Opened(self._entries[event.option_index]))

    def action_cursor_down(self) -> None:
        """Move to the next entry, or from the last one into the next list."""
        if self.highlighted in (None, self.option_count - 1):
            self._go_to_list(1)
        else:
            super().action_cursor_down()

    def action_cursor_up(self) -> None:
        """Move to the previous entry, or from the first one into the previous list."""
        if self.highlighted in (None, 0):
            self._go_to_list(-1)
        else:
            super().action_cursor_up()

    def _go_to_list(self, step: int) -> None:
        shown = [each for each in self.screen.query(EntryList) if each.display and each.option_count]
        other = shown[(shown.index(self) + step) % len(shown)]
        other.focus()
        other.highlighted = 0 if step > 0 else other.option_count - 1

    def _draw(self) -> None:
        width, height = self.content_size
        if not width:  # not laid out yet; on_resize will follow
            return
        grows = self.styles.height is not None and self.styles.height.is_auto
        shown = self._entries if grows else self._entries[: max(height, 1)]
        option = self.highlighted_option if self.has_focus else None
        at = option.id if option is not None else None
        keys = [entry.key for entry in shown]
        self.set_options(Option(entry.draw(width), entry.key) for entry in shown)
        if shown:
            self.highlighted = keys.index(at) if at in keys else 0
