"""Files that a user names. Imports nothing of ours but the errors."""

from __future__ import annotations

from pathlib import Path

from mta_cli.errors import BadInput

_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # what a shell has opened: `<(…)`


def refuse_special_file(path: Path) -> None:
    """Raises BadInput for a pipe, socket or device, which might be read for ever. A missing file and a folder pass."""
    if path.exists() and not path.is_file() and not path.is_dir() and not str(path).startswith(_STREAMS):
        raise BadInput(f"{path} is a pipe, socket or device, not a file.", hint=f"a copy of it can be read: cat {path}")
