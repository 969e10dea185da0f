"""Converts values to text for display: cleaned, never markup. All text from data goes through this module.

Text that Textual's own widgets show, such as pasted input, goes through the line filter.
"""

from __future__ import annotations

from rich.segment import Segment
from rich.text import Text
from textual.color import Color
from textual.filter import LineFilter

from mta_cli.text.printable import clean_line, clean_text

MISSING_VALUE = "–"


class PrintableFilter(LineFilter):
    """The last filter before the terminal: removes from every line the characters that `clean_text` removes."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with their texts cleaned."""
        return [
            one if one.control or one.text.isprintable() else Segment(clean_text(one.text), one.style)
            for one in segments
        ]


def line_text(value: object, style: str = "") -> Text:
    """A value on one line; a dash for None."""
    return Text(
        MISSING_VALUE if value is None else clean_line(_format_value(value)),
        style=style,
        no_wrap=True,
        overflow="ellipsis",
    )


def block_text(value: str, style: str = "") -> Text:
    """A text with its line breaks."""
    return Text(clean_text(value), style=style)


def format_hint(hint: str) -> str:
    """A hint as a sentence: a question unchanged, anything else after "Try"."""
    return hint[:1].upper() + hint[1:] if hint.startswith("did you mean") else f"Try: {hint}"


def format_signed(value: float | None) -> str:
    """A difference in three decimals with its sign; no zero before the point."""
    if value is None or value != value:
        return MISSING_VALUE
    shown = f"{value:+.3f}"
    return shown.replace("+0.", "+.").replace("-0.", "−.").replace("-", "−")


def describe_ending(ended: str) -> str:
    """The way an answer ended, to follow its number of tokens; empty for a normal end."""
    return {"length": " · cut", "repetition": " · began to repeat itself"}.get(ended, "")


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
