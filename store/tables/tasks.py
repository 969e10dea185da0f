"""Task files that were added to the store, as their TOML text. Knows neither TOML nor the built-in tasks."""

from __future__ import annotations

from store.connection import Connection
from store.seals import is_sound, put_seals, sound_row

_SELECT_TASK = f"SELECT name, toml, {is_sound('tasks')} AS sound FROM tasks"


class Tasks:
    """The tasks that people added."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def save_task(self, name: str, toml_text: str) -> None:
        """Store a task, in place of the earlier one of its name."""
        with self._db.transaction():
            self._db.execute_write("REPLACE INTO tasks (name, toml) VALUES (?, ?)", (name, toml_text))
            put_seals(self._db, "tasks", "name = ?", (name,))

    def get(self, name: str) -> str | None:
        """The task's text, if there is such a task."""
        row = self._db.fetch_dict(f"{_SELECT_TASK} WHERE name = ?", (name,))
        return str(sound_row("tasks", row)["toml"]) if row is not None else None

    def all(self) -> dict[str, str]:
        """Every task's text, by name."""
        rows = [sound_row("tasks", row) for row in self._db.fetch_dicts(f"{_SELECT_TASK} ORDER BY name")]
        return {row["name"]: row["toml"] for row in rows}

    def remove(self, name: str) -> None:
        """Remove a task if it is there."""
        self._db.execute_write("DELETE FROM tasks WHERE name = ?", (name,))
