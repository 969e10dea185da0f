"""Valid names of users. A name is data and never becomes part of a path, query or command. Knows no database."""

from __future__ import annotations

import unicodedata

from mta_cli.errors import BadInput

MAX_NAME_CHARS = 200
"""The most characters of a user's name, in its stored form."""

RESERVED_NAMES = ("*", "@", "-", "base")
"""Words of command lines, files of keys and the server's models. New users cannot have them as names."""

FORGOTTEN_NAME = "(forgotten)"
"""Replaces the name of a forgotten user in other users' records."""

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
"""Zero-width joiners, which Persian, Indic and other scripts need. Allowed between two letters (as in IDNA, RFC 5892,
A.1).
"""

_INVISIBLE_LETTERS = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
"""Letters and marks that are invisible."""


def check_name(raw: str) -> str:
    """The stored form (NFC) of a user's name. Raises BadInput, with the name escaped, for an invalid one."""
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
        return "has another meaning in commands"
    if len(raw) > 4 * MAX_NAME_CHARS:  # a cheap first test: NFC may shorten a name, but hardly to a quarter
        return f"has {len(raw):,} characters; the most is {MAX_NAME_CHARS}"
    for i, char in enumerate(raw):
        kind = _FORBIDDEN_CATEGORIES.get(unicodedata.category(char))
        if char in _INVISIBLE_LETTERS:
            kind = "an invisible letter"
        elif char in _JOINERS and _is_letter(raw[i - 1 : i]) and _is_letter(raw[i + 1 : i + 2]):
            continue
        if kind is not None:
            return f"holds {kind} (U+{ord(char):04X})"
    return 'begins with "-" and would be read as a flag' if raw.startswith("-") else None


def _is_letter(char: str) -> bool:
    return char != "" and unicodedata.category(char)[0] in "LM"


def quote_text(text: str, most: int = 60) -> str:
    """`text` quoted, escaped to printable characters and cut, for a message."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def normalise_name(name: str) -> str:
    """The name without case, Unicode form, joiners and white space around words, to find similar names."""
    plain = unicodedata.normalize("NFKC", name.translate(dict.fromkeys(map(ord, _JOINERS)))).casefold()
    return " ".join(unicodedata.normalize("NFKC", plain).split())
