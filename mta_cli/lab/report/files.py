"""Files of a report, each written whole or not at all, and readable for other accounts."""

from __future__ import annotations

from pathlib import Path

from mta_cli.errors import BadInput, system_reason

FILE_MODE = 0o644


def write_whole_file(path: Path, content: bytes) -> Path:
    """Write `content` to `path` and return the path. A missing folder is created.

    Raises BadInput if the folder cannot be created, and the errors of `store.files.atomic_write`. No temporary file
    remains.
    """
    from store.files import atomic_write

    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # with the default mode of the user's folders
    except OSError as error:
        raise BadInput(f"The folder {path.parent} cannot be made: {system_reason(error)}.") from error
    atomic_write(path, content)
    path.chmod(FILE_MODE)
    return path
