"""General dialogs over a screen: a question, a choice, an error, help, and waiting for a running step."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, OptionList, Static, TextArea
from textual.widgets.option_list import Option

from mta_cli.errors import BadInput, MtaError, words_to_text
from mta_cli.text.printable import clean_text
from mta_cli.tui.text import block_text, format_hint, line_text

Answer = TypeVar("Answer")


class ScrollingDialog(ModalScreen[Answer]):
    """A dialog in which arrow and page keys scroll the text of class `long`, while a button keeps the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"scroll_text('{action}')", "Scroll", show=False, tooltip="Scroll the text")
        for key, action in (
            ("up", "scroll_up"),
            ("down", "scroll_down"),
            ("pageup", "page_up"),
            ("pagedown", "page_down"),
        )
    ]

    async def action_scroll_text(self, action: str) -> None:
        """Scroll the long text."""
        await self.query_one(".long").run_action(action)


class ConfirmDialog(ScrollingDialog[bool]):
    """A yes-or-no question; returns whether the answer is yes. "No" has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes", tooltip="Yes"),
        Binding("n,escape", "answer(False)", "No", id="confirm.no", tooltip="No, change nothing"),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The question and both answers."""
        with Vertical(classes="dialog"):
            with VerticalScroll(classes="long", can_focus=False):
                yield Static(block_text(self._question))
            with Horizontal(classes="buttons"):
                yield Button("No", id="no")
                yield Button("Yes", id="yes", variant="warning")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Return the pressed button's answer."""
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Return the pressed key's answer."""
        self.dismiss(answer)


class ChoiceDialog(ModalScreen[str | None]):
    """A list of options, with the cursor on the current one; returns the id of the chosen one, None if cancelled."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close", id="choice.close", tooltip="Choose nothing"),
    ]
    DEFAULT_CSS = """
    ChoiceDialog OptionList, ChoiceDialog OptionList:focus {
        height: auto;
        max-height: 14;
        border: none;
    }
    """

    def __init__(self, title: str, options: Iterable[Option], current: str = "") -> None:
        super().__init__()
        self._heading, self._current = title, current
        self._options = list(options)

    def compose(self) -> ComposeResult:
        """The question and the options."""
        with Vertical(classes="dialog"):
            yield Static(line_text(self._heading, "bold"))
            yield OptionList(*self._options, markup=False)

    def on_mount(self) -> None:
        """Put the cursor on the current option."""
        ids = [option.id for option in self._options]
        self.query_one(OptionList).highlighted = ids.index(self._current) if self._current in ids else 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen option."""
        self.dismiss(event.option_id)


class ClosingDialog(ModalScreen[None]):
    """Says that the window closes after the current step."""

    def __init__(self, running: str) -> None:
        super().__init__()
        self._job_title = running

    def compose(self) -> ComposeResult:
        """A sentence that names the running job or answer."""
        with Vertical(classes="dialog"):
            yield Static(block_text(f"{self._job_title}: the window closes after the current step."))


class ErrorDialog(ModalScreen[None]):
    """An error: its message, its hint, and details that can be selected and copied."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter", "dismiss", "Close", id="error.close", tooltip="Back to the screen"),
        Binding("c", "copy", "Copy", id="error.copy", tooltip="Copy message and details", priority=True),
    ]

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def compose(self) -> ComposeResult:
        """The message, the hint, the details and the buttons."""
        with Vertical(classes="dialog error"):
            yield Static(block_text(error_message(self._error), "bold"))
            if isinstance(self._error, MtaError) and self._error.hint:
                yield Static(block_text(format_hint(words_to_text(self._error.hint))))
            area = TextArea(error_details(self._error), read_only=True, soft_wrap=True)
            area.can_focus = True
            yield area
            with Horizontal(classes="buttons"):
                yield Button("Copy", id="copy")
                yield Button("Close", id="close", variant="primary")

    def on_mount(self) -> None:
        """Focus the button that closes the dialog."""
        self.query_one("#close").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Copy the error, or close the dialog."""
        if event.button.id == "copy":
            self.action_copy()
        else:
            self.dismiss()

    def action_copy(self) -> None:
        """Copy the message and the details to the clipboard."""
        self.app.copy_to_clipboard(f"{error_message(self._error)}\n\n{error_details(self._error)}")


class HelpDialog(ModalScreen[None]):
    """Help on the focused widget and on the screen, then a list of all active keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Close", id="help.close", tooltip="Back to the screen"),
    ]

    def __init__(self, text: str, keys: list[tuple[str, str]]) -> None:
        super().__init__()
        self._text, self._key_help = text, keys

    def compose(self) -> ComposeResult:
        """The help text, then the keys."""
        with VerticalScroll(classes="dialog help") as box:
            box.can_focus = True
            yield Static(block_text(self._text))
            yield Static(line_text("Keys", "bold"), classes="head")
            width = max((len(key) for key, _ in self._key_help), default=0)
            yield Static(block_text("\n".join(f"{key:<{width}}  {about}" for key, about in self._key_help)))

    def on_mount(self) -> None:
        """Focus the help text, so that arrow keys scroll it."""
        self.query_one(".help").focus()


def error_message(error: BaseException) -> str:
    """The error's message, as on the command line."""
    return clean_text(str(error) if isinstance(error, MtaError) else f"{type(error).__name__}: {error}")


def error_details(error: BaseException) -> str:
    """The faults of a BadInput, the kind of another MtaError, or the traceback of an unexpected error."""
    if isinstance(error, BadInput) and error.faults:
        return clean_text("\n".join(error.faults))
    if isinstance(error, MtaError):
        return clean_text(f"{type(error).__name__}, exit code {error.exit_code} on the command line")
    return clean_text("".join(traceback.format_exception(error)))
