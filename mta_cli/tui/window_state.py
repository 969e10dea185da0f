"""The window's state between two starts: theme, screen and selected user, in a small file of the store.

The user is stored by number, so that no name stays behind after a removal. Unreadable and unwritable files are ignored.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mta_cli.errors import MtaError
from store.files import atomic_write

FILE_NAME = "window.json"
MAX_FILE_BYTES = 10_000
MAX_USER_ID = 2**63 - 1  # SQLite's largest


@dataclass(frozen=True)
class WindowState:
    """An empty theme is the default one, an empty screen the first one."""

    theme: str = ""
    screen: str = ""
    user_id: int | None = None

    @classmethod
    def load(cls, store: Path) -> WindowState:
        """The saved state of a store, without invalid parts."""
        path, found = store / FILE_NAME, None
        with suppress(OSError, ValueError, RecursionError):
            if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                found = json.loads(path.read_bytes())
        if not isinstance(found, dict):
            return cls()
        number = found.get("user_id")
        valid = isinstance(number, int) and not isinstance(number, bool) and 0 < number <= MAX_USER_ID
        return cls(_text(found.get("theme")), _text(found.get("screen")), number if valid else None)

    def save(self, store: Path) -> None:
        """Write the state into a store, if it exists and is writable."""
        if store.is_dir():
            with suppress(MtaError):
                atomic_write(store / FILE_NAME, json.dumps(asdict(self)).encode())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
