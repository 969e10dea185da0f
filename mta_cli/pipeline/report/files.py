"""Files of a report, written whole or not at all, readable for others. Knows nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

from mta_cli.errors import BadInput, system_reason

FILE_MODE = 0o644


def write_whole_file(path: Path, content: bytes) -> Path:
    """Make `content` the file at `path`, whose folder is made as needed; returns the path.

    Raises BadInput when the folder cannot be made, and as `store.files.atomic_write`; no temporary file stays.
    """
    from store.files import atomic_write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # with the mode of the person's own folders
    except OSError as error:
        raise BadInput(f"The folder {path.parent} cannot be made: {system_reason(error)}.") from error
    atomic_write(path, content)
    path.chmod(FILE_MODE)
    return path
