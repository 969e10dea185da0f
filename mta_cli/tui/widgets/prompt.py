"""The input for a question; Enter submits it."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from mta_cli.text.printable import clean_text


class PromptArea(TextArea):
    """A text area of a few lines. Pasted and programmatic text is cleaned first."""

    HELP: ClassVar[str] = "Enter asks. Ctrl+J begins a new line. Escape leaves the prompt, so that keys work again."
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Ask", id="prompt.ask", tooltip="Ask what is typed"),
        Binding("ctrl+j,shift+enter", "new_line", "New line", id="prompt.line", show=False, tooltip="Begin a new line"),
    ]
    DEFAULT_CSS = """
    PromptArea {
        height: auto;
        min-height: 3;
        max-height: 8;
        border: round $primary 60%;
        padding: 0 1;
    }
    PromptArea:focus {
        border: round $primary;
    }
    """

    class Submitted(Message):
        """Enter was pressed on a text that is not blank."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, placeholder: str) -> None:
        super().__init__(soft_wrap=True, show_line_numbers=False, placeholder=placeholder, highlight_cursor_line=False)

    def replace_text(self, text: str) -> None:
        """Replace the text and put the cursor at its end."""
        self.load_text(clean_text(text))
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        """Submit the text, unless it is blank."""
        if self.text.strip():
            self.post_message(self.Submitted(self.text))

    def action_new_line(self) -> None:
        """Insert a line break at the cursor."""
        self.insert("\n")

    def on_key(self, event: events.Key) -> None:
        """Enter submits the text."""
        if event.key == "enter":  # a text area would insert a line break
            event.stop()
            event.prevent_default()
            self.action_submit()

    def on_resize(self) -> None:
        """Adapt the height to the wrapped lines and keep the cursor in view."""
        self.refresh(layout=True)
        self.call_after_refresh(self.scroll_cursor_visible, animate=False)

    def on_paste(self, event: events.Paste) -> None:
        """Clean pasted text before the text area inserts it."""
        event.text = clean_text(event.text)
