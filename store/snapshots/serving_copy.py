"""Copies the part of a store's database that answering needs to a new one of the same schema, without texts.

The new database starts empty and gets only the columns listed here, so it cannot contain a user's text or bytes of a
removed user.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from store.connection import sqlite_uri, translate_sqlite_errors
from store.files import sync_file
from store.schema import APPLICATION_ID, SCHEMA_FILE, SCHEMA_VERSION

# `registry` is the store's database; tables without a prefix are the copy's, so later statements select by rows that
# earlier ones copied. `{columns}` are all columns of a table: such a table has no text of a user.
_CHOSEN_TASK = "(:tasks IS NULL OR task IN (SELECT value FROM json_each(:tasks)))"
_OF_KEPT = "bank_id IN (SELECT id FROM banks) AND user_id IN (SELECT id FROM users)"
_COPIED = {
    "banks": f"""SELECT {{columns}} FROM registry.banks WHERE id IN (
        SELECT max(id) FROM registry.banks WHERE status = 'ready' AND purpose = '' AND {_CHOSEN_TASK}
        GROUP BY task, base
    )""",
    "tasks": f"SELECT name, toml FROM (SELECT name, name AS task, toml FROM registry.tasks) WHERE {_CHOSEN_TASK}",
    "bases": """SELECT {columns} FROM registry.bases
        WHERE fingerprint IN (SELECT base FROM banks UNION SELECT embedder FROM banks)""",
    "users": f"""SELECT id, shown_name(name), can_anchor, created, NULL FROM registry.users
        WHERE :tasks IS NULL OR id IN (
            SELECT user_id FROM registry.items WHERE {_CHOSEN_TASK}
            UNION SELECT user_id FROM registry.recipes WHERE {_CHOSEN_TASK}
            UNION SELECT user_id FROM registry.anchors WHERE bank_id IN (SELECT id FROM banks)
        )""",
    # An item whose output is a label is copied with its label only, which label memory counts.
    "items": """SELECT id, user_id, id, task, '', label, time FROM (
        SELECT *, label_of(task, output) AS label FROM registry.items
        WHERE task IN (SELECT value FROM json_each(:labelled)) AND task IN (SELECT task FROM banks)
            AND user_id IN (SELECT id FROM users)
    ) WHERE label IS NOT NULL ORDER BY id""",
    "neighbours": """SELECT {columns} FROM registry.neighbours
        WHERE bank_id IN (SELECT id FROM banks) AND item_id IN (SELECT id FROM items)""",
    "anchors": """SELECT id, bank_id, CASE WHEN user_id IN (SELECT id FROM users) THEN user_id END, cluster,
        cluster_size, items, digest, loss_first, loss_last, stale
        FROM registry.anchors WHERE bank_id IN (SELECT id FROM banks)""",
    "recipes": f"SELECT {{columns}} FROM registry.recipes WHERE {_OF_KEPT}",
    "recipe_anchors": f"SELECT {{columns}} FROM registry.recipe_anchors WHERE {_OF_KEPT}",
    "stacks": f"SELECT {{columns}} FROM registry.stacks WHERE {_OF_KEPT}",
    "stack_anchors": f"SELECT {{columns}} FROM registry.stack_anchors WHERE {_OF_KEPT}",
    "adapters": """SELECT {columns} FROM registry.adapters WHERE digest IN (
        WITH RECURSIVE used (digest) AS (
            SELECT task_adapter FROM banks UNION SELECT basis FROM banks UNION SELECT digest FROM anchors
            UNION SELECT digest FROM stacks
            UNION SELECT below.task_adapter FROM registry.adapters AS below JOIN used USING (digest)
        ) SELECT digest FROM used
    )""",
}


@dataclass(frozen=True)
class ServingChoice:
    """Which parts of a store are copied: the models of `tasks` (None for all), with users named by `shown_name`.

    `label_of(task, output)` returns the label of an item's output, or None for a text. It is called only for
    `labelled_tasks`.
    """

    tasks: tuple[str, ...] | None
    labelled_tasks: Collection[str]
    label_of: Callable[[str, str], str | None]
    shown_name: Callable[[str], str]


def write_serving_copy(root: Path, path: Path, choice: ServingChoice, timeout: float) -> None:
    """Write the part of the store in `root` that answering needs to `path`, an empty file, as one consistent state.

    Writers need not wait. Equal rows give equal bytes. Raises the errors of `translate_sqlite_errors`.
    """
    with (
        translate_sqlite_errors(root, timeout),
        closing(sqlite3.connect(path.absolute().as_uri(), uri=True, timeout=timeout, isolation_level=None)) as conn,
    ):
        conn.execute("PRAGMA journal_mode = OFF").fetchall()  # a failed copy is deleted
        conn.execute("PRAGMA synchronous = OFF")
        conn.executescript(SCHEMA_FILE.read_text(encoding="utf-8"))
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        conn.create_function("label_of", 2, choice.label_of, deterministic=True)
        conn.create_function("shown_name", 1, choice.shown_name, deterministic=True)
        conn.execute("ATTACH ? AS registry", (sqlite_uri(root / "registry.db", os.access(root, os.W_OK)),))
        _copy_rows(conn, choice)
        conn.execute("DETACH registry")
        # WAL mode, so that readers of the pulled copy go on while a newer one replaces it.
        conn.execute("PRAGMA journal_mode = WAL").fetchall()
    sync_file(path)


def _copy_rows(conn: sqlite3.Connection, choice: ServingChoice) -> None:
    values = {
        "tasks": None if choice.tasks is None else json.dumps(choice.tasks),
        "labelled": json.dumps(sorted(choice.labelled_tasks)),
    }
    conn.execute("BEGIN")  # one consistent state of the registry
    for table, select in _COPIED.items():
        columns = ", ".join(name for (name,) in conn.execute("SELECT name FROM pragma_table_info(?)", (table,)))
        conn.execute(f"INSERT INTO main.{table} ({columns}) {select.format(columns=columns)}", values)
    conn.execute("COMMIT")
