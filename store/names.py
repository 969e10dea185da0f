"""Valid names of users. A name is data and never becomes part of a path, query or command. Knows no database."""

from __future__ import annotations

import unicodedata

from mta_cli.errors import BadInput

MAX_NAME_CHARS = 200
"""The most characters of a user's name, in its stored form."""

RESERVED_NAMES = ("*", "@", "-", "base")
"""Words with a meaning in commands, in files of keys or as models of the server. New users cannot have these names."""

FORGOTTEN_NAME = "(forgotten)"
"""Replaces the name of a removed user in other users' records."""

_FORBIDDEN_CATEGORIES = {
    "Cc": "a control character",
    "Cf": "an invisible formatting character",
    "Cs": "half of a surrogate pair",
    "Co": "a private-use character",
    "Cn": "a code point that is not a character",
    "Zl": "a line separator",
    "Zp": "a paragraph separator",
}

_JOINERS = "\u200c\u200d"
"""Zero-width joiners, allowed only between two letters (as in RFC 5892, A.1): Persian and Indic scripts need them."""

_INVISIBLE_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Characters that Unicode counts as letters, marks or symbols, but that terminals show as nothing."""


def check_name(raw: str) -> str:
    """A user's name in the form in which it is stored (Unicode NFC). Raises BadInput for an invalid name."""
    fault = _name_fault(raw)
    if fault is None:
        name = unicodedata.normalize("NFC", raw)
        if len(name) <= MAX_NAME_CHARS:
            return name
        fault = f"has {len(name):,} characters; the most is {MAX_NAME_CHARS}"
    raise BadInput(f"{quote_text(raw)} cannot be a user's name: it {fault}.", hint="choose a short, printable name")


def _name_fault(raw: str) -> str | None:
    if not raw.strip():
        return "is empty"
    if raw in RESERVED_NAMES:
        return "is a word with another meaning in commands"
    if len(raw) > 4 * MAX_NAME_CHARS:  # before NFC, which is slow on long texts and hardly shortens one to a quarter
        return f"has {len(raw):,} characters; the most is {MAX_NAME_CHARS}"
    for i, char in enumerate(raw):
        kind = _FORBIDDEN_CATEGORIES.get(unicodedata.category(char))
        if char in _INVISIBLE_LETTERS:
            kind = "an invisible letter"
        elif char in _JOINERS and _is_letter(raw[i - 1 : i]) and _is_letter(raw[i + 1 : i + 2]):
            continue
        if kind is not None:
            return f"contains {kind} (U+{ord(char):04X})"
    return 'begins with "-" and would be read as a flag' if raw.startswith("-") else None


def _is_letter(char: str) -> bool:
    return char != "" and unicodedata.category(char)[0] in "LM"


def quote_text(text: str, most: int = 60) -> str:
    """`text` for a message: in quotes, escaped to printable characters, and cut to `most` characters."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def normalise_name(name: str) -> str:
    """The name without differences of case, Unicode form, joiners and white space, to compare it with similar names."""
    plain = unicodedata.normalize("NFKC", name.translate(dict.fromkeys(map(ord, _JOINERS)))).casefold()
    return " ".join(unicodedata.normalize("NFKC", plain).split())
