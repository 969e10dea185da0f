"""Changes one setting in a settings file and keeps comments and order. Knows no command."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from mta_cli.configuration.settings import read_file_values
from mta_cli.errors import BadInput, Command, Flag
from store.files import atomic_write


def write_setting(path: Path, key: str, value: Any) -> bool:
    """Set `key` in the file at `path`, which is made if missing; None removes the key.

    Returns whether the file was changed. Unknown keys stay and can be removed. Raises BadInput for an unreadable file,
    and if the key's section is not a table.
    """
    import tomlkit

    if read_file_values(path).get(key) == value:
        return False
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    section, _, name = key.partition(".")
    if value is not None:
        table = document.setdefault(section, tomlkit.table())
        if not isinstance(table, MutableMapping):
            raise BadInput(
                f"in the settings file {path}, {section} is a value and not a section",
                hint=(Command("config unset", section), " removes it; from a store's file with ", Flag("in_store")),
            )
        table[name] = value
    elif key in document:  # a key outside any section
        del document[key]
    else:
        del document[section][name]
    atomic_write(path.resolve(), tomlkit.dumps(document).encode())
    return True
