"""The letter and the colour of a bank's anchor, the same on the map, in tables and in recipes."""

from __future__ import annotations

from string import ascii_lowercase, ascii_uppercase, digits

ANCHOR_LETTERS = ascii_uppercase + ascii_lowercase + digits
UNLETTERED_CHAR = "◆"
ANCHOR_COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#0072b2")
"""The colours of Okabe and Ito, which people with any colour vision can distinguish. The letter has the same meaning.
"""


def anchor_letter(number: int) -> str:
    """The letter of a bank's anchor, by its index in the bank."""
    return ANCHOR_LETTERS[number] if number < len(ANCHOR_LETTERS) else UNLETTERED_CHAR


def anchor_colour(number: int) -> str:
    """The colour of a bank's anchor, by its index in the bank; colours repeat after the last one."""
    return ANCHOR_COLOURS[number % len(ANCHOR_COLOURS)]
