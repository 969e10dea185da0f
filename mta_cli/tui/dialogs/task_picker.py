"""A dialog to choose one task among those with items, or all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static

from mta_cli.tui.text import line_text


class TaskPicker(ModalScreen[tuple[str | None] | None]):
    """A list of tasks. Returns the chosen one in a tuple, `(None,)` for all, None if cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", id="tasks.close", tooltip="Change nothing"),
    ]
    DEFAULT_CSS = """
    TaskPicker OptionList {
        height: auto;
        max-height: 14;
        border: none;
    }
    TaskPicker OptionList:focus {
        border: none;
    }
    """

    def __init__(self, tasks: Sequence[tuple[str, int]], chosen: str | None) -> None:
        super().__init__()
        self._tasks: list[str | None] = [None, *(task for task, _ in tasks)]
        self._user_counts = [None, *(users for _, users in tasks)]
        self._current_task = chosen

    def compose(self) -> ComposeResult:
        """The question and the tasks."""
        with Vertical(classes="dialog"):
            yield Static(line_text("Show one task only", "bold"))
            yield OptionList(*map(self._option, range(len(self._tasks))))

    def on_mount(self) -> None:
        """Put the cursor on the current choice."""
        options = self.query_one(OptionList)
        options.highlighted = self._tasks.index(self._current_task) if self._current_task in self._tasks else 0
        options.focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen task."""
        self.dismiss((self._tasks[event.option_index],))

    def _option(self, place: int) -> Text:
        task, users = self._tasks[place], self._user_counts[place]
        if task is None:
            return line_text("all tasks")
        return Text.assemble(line_text(task), "  ", line_text(f"{users:,} user{'' if users == 1 else 's'}", "dim"))
