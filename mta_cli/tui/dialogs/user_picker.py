"""A dialog to choose a user by typing a part of the name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.worker import Worker, WorkerState

from mta_cli.tui.text import line_text

if TYPE_CHECKING:
    from mta_cli.tui.app import MtaApp

MAX_USERS_LISTED = 50  # names listed at once


class UserPicker(ModalScreen[str | None]):
    """A list of users, filtered while a name is typed. Returns the chosen name, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", id="picker.close", tooltip="Select no user"),
        Binding("down", "focus_list", "Next", id="picker.down", show=False, tooltip="Go down the list"),
    ]
    DEFAULT_CSS = """
    UserPicker OptionList {
        height: auto;
        max-height: 12;
        border: none;
    }
    """

    def __init__(self, title: str, *, without: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._heading, self._excluded_users = title, without
        self._names: list[str] = []
        self._searched_text: str | None = None  # the text for which `_names` were found
        self._submit_pending = False  # Enter was pressed before the names were found

    def compose(self) -> ComposeResult:
        """The question, the input, and the names."""
        with Vertical(classes="dialog"):
            yield Static(line_text(self._heading, "bold"))
            yield Input(placeholder="part of a name")
            yield OptionList()

    def on_mount(self) -> None:
        """Focus the input and list all users."""
        self.query_one(Input).focus()
        self._search_users("")

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search for the typed text."""
        self._submit_pending = False
        self._search_users(event.value)

    def on_input_submitted(self) -> None:
        """Return the highlighted name, once the names for the typed text are found."""
        options = self.query_one(OptionList)
        self._submit_pending = self._searched_text != self.query_one(Input).value
        if self._names and not self._submit_pending:
            self.dismiss(self._names[options.highlighted or 0])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen name."""
        self.dismiss(self._names[event.option_index])

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Show an error of reading the users."""
        if event.state is WorkerState.ERROR and event.worker.error is not None:
            cast("MtaApp", self.app).show_error(event.worker.error)

    def action_focus_list(self) -> None:
        """Move the focus from the input to the names."""
        self.query_one(OptionList).focus()

    @work(exclusive=True, group="look", exit_on_error=False)
    async def _search_users(self, words: str) -> None:
        store, limit = cast("MtaApp", self.app).store_thread, MAX_USERS_LISTED + len(self._excluded_users)
        found = await store.run(lambda reg: reg.user_table.user_page(words, "name", False, 0, limit))
        rows = [row for row in found if row.name not in self._excluded_users][:MAX_USERS_LISTED]
        self._names, self._searched_text = [row.name for row in rows], words
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Text.assemble(line_text(row.name), "  ", line_text(row.status, "dim")) for row in rows])
        if rows:
            options.highlighted = 0
            if self._submit_pending:
                self.dismiss(self._names[0])
