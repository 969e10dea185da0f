"""Converts values to text for display: without control characters and never as markup. Used for all text from data.

Text that Textual's own widgets show, such as pasted input, is cleaned by `PrintableFilter`.
"""

from __future__ import annotations

from rich.segment import Segment
from rich.text import Text
from textual.color import Color
from textual.filter import LineFilter

from mta_cli.terminal.tables import format_cell
from mta_cli.text.formatting import NO_VALUE
from mta_cli.text.printable import clean_text


class PrintableFilter(LineFilter):
    """A filter on all lines that Textual draws: it removes the characters that `clean_text` removes."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with their texts cleaned."""
        return [
            one if one.control or one.text.isprintable() else Segment(clean_text(one.text), one.style)
            for one in segments
        ]


def line_text(value: object, style: str = "") -> Text:
    """A value on one line; a dash for None."""
    return Text(format_cell(value), style=style, no_wrap=True, overflow="ellipsis")


def block_text(value: str, style: str = "") -> Text:
    """A text with its line breaks."""
    return Text(clean_text(value), style=style)


def format_hint(hint: str) -> str:
    """A hint as a sentence: "did you mean …" unchanged, anything else after "Try"."""
    return hint[:1].upper() + hint[1:] if hint.startswith("did you mean") else f"Try: {hint}"


def format_short(value: float | None, decimals: int = 2, *, signed: bool = False) -> str:
    """A number without the zero before the point, such as .12 or, if `signed`, +.12; a dash for None and NaN."""
    if value is None or value != value:
        return NO_VALUE
    shown = f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")
    return shown.replace("0.", ".", 1) if shown.lstrip("+−").startswith("0.") else shown


def format_signed(value: float | None) -> str:
    """A difference with its sign and three decimals: +.123."""
    return format_short(value, 3, signed=True)


def describe_ending(ended: str) -> str:
    """Text after an answer's number of tokens if it was cut or repeated itself; empty for a normal end."""
    return {"length": " · cut", "repetition": " · began to repeat itself"}.get(ended, "")
