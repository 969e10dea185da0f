"""Task files that users added to the store, as TOML text. Knows neither TOML nor the built-in tasks."""

from __future__ import annotations

from store.connection import Connection


class Tasks:
    """The tasks that users added."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def save_task(self, name: str, toml_text: str) -> None:
        """Store a task, replacing an earlier one of the same name."""
        self._db.execute_write("REPLACE INTO tasks (name, toml) VALUES (?, ?)", (name, toml_text))

    def get(self, name: str) -> str | None:
        """The task's text, if it exists."""
        found = self._db.fetch_value("SELECT toml FROM tasks WHERE name = ?", (name,))
        return None if found is None else str(found)

    def all(self) -> dict[str, str]:
        """Every task's text, by name."""
        return dict(self._db.fetch_tuples("SELECT name, toml FROM tasks ORDER BY name"))

    def remove(self, name: str) -> None:
        """Remove a task if it exists."""
        self._db.execute_write("DELETE FROM tasks WHERE name = ?", (name,))
