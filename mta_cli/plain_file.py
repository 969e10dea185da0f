"""Files that a user names. Imports nothing of ours but the errors."""

from __future__ import annotations

from pathlib import Path

from mta_cli.errors import BadInput

_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # files that a shell has opened for the command, as in `<(…)`


def refuse_special_file(path: Path) -> None:
    """Raises BadInput for a pipe, socket or device, which could be read forever. A folder or missing file passes."""
    if path.exists() and not path.is_file() and not path.is_dir() and not str(path).startswith(_STREAMS):
        raise BadInput(
            f"{path} is a pipe, socket or device, not a file.", hint=f"copy its content first: cat {path} > FILE"
        )
