"""The sign and the colour of a bank's anchor, the same on the map, in tables and in recipes."""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase, digits

ANCHOR_LETTERS = ascii_uppercase + ascii_lowercase + digits
UNLETTERED_CHAR = "◆"
ANCHOR_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2")
"""Colours of Okabe and Ito, which are told apart with every kind of colour vision; the letter says the same without."""


def anchor_letter(number: int) -> str:
    """The sign of a bank's anchor, by its place in the bank."""
    return ANCHOR_LETTERS[number] if number < len(ANCHOR_LETTERS) else UNLETTERED_CHAR


def anchor_colour(number: int) -> str:
    """The colour of a bank's anchor, by its place in the bank; after the last they begin again."""
    return ANCHOR_COLOURS[number % len(ANCHOR_COLOURS)]
