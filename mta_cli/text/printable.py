"""Text that is safe to show in a terminal, and JSON documents. Knows neither streams nor styles."""

from __future__ import annotations

import dataclasses
import json
import math
import unicodedata
from collections.abc import Mapping
from typing import Any

# Emoji sequences and several scripts need the two zero-width joiners, which neither move the cursor nor reorder text.
_JOINERS = frozenset("\u200c\u200d")


def _is_printable(char: str) -> bool:
    return char.isprintable() or char in "\n\t" or char in _JOINERS or unicodedata.category(char) == "Zs"


def clean_text(text: str) -> str:
    """`text` without characters that could change a terminal: control characters, bidi overrides, surrogates.

    Newline and tab stay.
    """
    if text.replace("\n", "").isprintable():  # hundreds of times faster than testing every character
        return text
    return "".join(char for char in text if _is_printable(char))


def clean_line(text: str) -> str:
    """`clean_text(text)` on one line: runs of white space become one space."""
    return " ".join(clean_text(text.replace("\r", "\n")).split())


def to_jsonable(value: Any) -> Any:
    """`value` as JSON values: dataclasses as objects, sets as sorted lists, NaN and infinity as null, others as str."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(to_jsonable(inner) for inner in value)
    if isinstance(value, list | tuple):
        return [to_jsonable(inner) for inner in value]
    return str(value)


def to_json(value: Any) -> str:
    """`value` as an indented JSON document that escapes the characters that `clean_text` would strip."""
    text = json.dumps(to_jsonable(value), ensure_ascii=False, indent=2)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(char if _is_printable(char) else json.dumps(char)[1:-1] for char in text)
