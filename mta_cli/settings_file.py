"""Changes one setting in a settings file, whose comments and order stay. Knows no command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mta_cli.settings import read_settings_file
from store.files import atomic_write


def write_setting(path: Path, key: str, value: Any) -> bool:
    """Give `key` a value in the file at `path`, which is made where it is missing; None takes it out.

    Returns whether the file was changed. Raises BadInput or UsageError for a file that cannot be used.
    """
    import tomlkit

    known = read_settings_file(path)
    if (known[key].value if key in known else None) == value:
        return False
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    section, _, name = key.partition(".")
    table: Any = document.setdefault(section, tomlkit.table())
    if value is None:
        del table[name]
    else:
        table[name] = value
    atomic_write(path.resolve(), tomlkit.dumps(document).encode())
    return True
