"""The window's state between two starts: theme, screen and selected user, in a small file of the store.

The user is stored by number, so that no name stays behind after a removal. Unreadable and unwritable files are ignored.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import msgspec

from mta_cli.errors import MtaError
from store.files import atomic_write

FILE_NAME = "window.json"
MAX_FILE_BYTES = 10_000


class WindowState(msgspec.Struct, frozen=True):
    """The saved state. An empty `theme` means the default theme, an empty `screen` the first screen."""

    theme: str = ""
    screen: str = ""
    user_id: Annotated[int, msgspec.Meta(gt=0, le=2**63 - 1)] | None = None

    @classmethod
    def load(cls, store: Path) -> WindowState:
        """The saved state of a store; the default state if the file is missing or invalid."""
        path = store / FILE_NAME
        with suppress(OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            if path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                return msgspec.json.decode(path.read_bytes(), type=cls)
        return cls()

    def save(self, store: Path) -> None:
        """Write the state into a store, if it exists and is writable."""
        if store.is_dir():
            with suppress(MtaError):
                atomic_write(store / FILE_NAME, msgspec.json.encode(self))
