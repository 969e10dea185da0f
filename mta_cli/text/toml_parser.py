"""Parses TOML from untrusted files within limits. Imports nothing of ours; knows no keys."""

from __future__ import annotations

import re
import tomllib
from typing import Any

MAX_KEY_DOTS = 40  # dots in one key; the library's memory grows with their square, to gigabytes for a file of 100 kB
_TOML_TOKEN_PATTERN = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|' r"'''.*?'''|" r'"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'|#[^\n]*|[^\S\n]+|\.|\w[\w-]*|.",
    re.DOTALL,
)


def parse_toml(text: str) -> dict[str, Any]:
    """The table in a TOML text. Raises only ValueError, for invalid and too deeply nested text."""
    dots = 0
    for token in _TOML_TOKEN_PATTERN.finditer(text):
        found = token[0]
        if found == ".":
            dots += 1
            if dots > MAX_KEY_DOTS:
                raise ValueError(f"a key has more than {MAX_KEY_DOTS} dots")
        elif not (found[0] in "\"'_" or found[0].isalnum() or found.isspace()) or "\n" in found:
            dots = 0
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
