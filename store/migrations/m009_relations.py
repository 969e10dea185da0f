"""Runs, recipes, chats and jobs refer to users, banks and anchors by key, and numbers are never reused.

Before, documents held names, and recipes were packed values. Knows only the tables of schema 8.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mta_cli.errors import IntegrityFault
from store.migrations.script import execute_script

if TYPE_CHECKING:
    import sqlite3

REFERENCED_TABLES = ("users", "items", "queries", "banks", "anchors", "evaluations", "cells", "chats", "messages")
"""Tables whose rows others refer to by number, besides runs."""

_BANK_RUN_KINDS = "('bank build', 'bank refresh', 'adaptation')"
_EVALUATION_RUN_KINDS = "('eval run', 'eval tune')"
_ITEM_VIEW = "CREATE VIEW item_texts AS SELECT id, user_id || 'x' || hex(task) AS scope, input, output FROM items"

_RUNS = f"""
CREATE TABLE new_runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    user_id INTEGER REFERENCES users ON DELETE CASCADE,
    bank_id INTEGER REFERENCES banks ON DELETE SET NULL,
    evaluation_id INTEGER REFERENCES evaluations ON DELETE CASCADE,
    status TEXT NOT NULL DEFAULT 'running',
    config TEXT NOT NULL,
    result TEXT,
    error TEXT,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    ended TEXT
);

INSERT INTO new_runs SELECT id, kind,
    iif(kind IN {_BANK_RUN_KINDS} OR kind IN {_EVALUATION_RUN_KINDS}, NULL,
        (SELECT id FROM users WHERE name = subject)),
    iif(kind IN {_BANK_RUN_KINDS}, (SELECT id FROM banks WHERE name || ' v' || version = subject), NULL),
    iif(kind IN {_EVALUATION_RUN_KINDS}, (SELECT id FROM evaluations WHERE 'evaluation ' || id = subject), NULL),
    status, config, result, error, pid, started, ended
FROM runs;

DELETE FROM new_runs WHERE user_id IS NULL AND kind NOT IN {_BANK_RUN_KINDS} AND kind NOT IN {_EVALUATION_RUN_KINDS};

DROP TABLE runs;

ALTER TABLE new_runs RENAME TO runs;

DELETE FROM steps WHERE run_id NOT IN (SELECT id FROM runs);

DELETE FROM steps WHERE run_id IN (SELECT id FROM runs WHERE user_id IS NULL)
    AND unit != 'task adapter' AND unit NOT GLOB 'anchor [0-9]*';

CREATE INDEX runs_of_user ON runs (user_id);

CREATE INDEX runs_of_bank ON runs (bank_id);

CREATE INDEX runs_of_evaluation ON runs (evaluation_id);

CREATE TABLE run_users (
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    position INTEGER NOT NULL,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    PRIMARY KEY (run_id, position)
) WITHOUT ROWID;

CREATE INDEX run_users_of_user ON run_users (user_id);
"""

_ANCHOR_ROWS = """
CREATE TABLE {singular}_anchors (
    user_id INTEGER NOT NULL,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    anchor_id INTEGER NOT NULL REFERENCES anchors,
    similarity REAL NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (user_id, task, bank_id, position),
    FOREIGN KEY (user_id, task, bank_id) REFERENCES {plural} ON DELETE CASCADE
) WITHOUT ROWID;

CREATE INDEX {singular}_anchors_of_anchor ON {singular}_anchors (anchor_id);
"""

_MESSAGE_ANCHORS = """
CREATE TABLE message_anchors (
    message_id INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
    position INTEGER NOT NULL,
    user_id INTEGER REFERENCES users ON DELETE SET NULL,
    PRIMARY KEY (message_id, position)
) WITHOUT ROWID;

CREATE INDEX message_anchors_of_user ON message_anchors (user_id);
"""

_JOBS = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    title TEXT NOT NULL
);

CREATE TABLE job_users (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    job_id INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    PRIMARY KEY (user_id, job_id)
) WITHOUT ROWID;

CREATE INDEX job_users_of_job ON job_users (job_id);
"""


def migrate(conn: sqlite3.Connection) -> None:
    """Bring the tables of schema 8 to schema 9. Foreign keys must be off: tables are rebuilt.

    Recipes and stacks that name missing anchors are dropped: they could not answer. Raises IntegrityFault where a row
    refers to a missing row; the store is then unchanged.
    """
    if conn.execute("PRAGMA foreign_keys").fetchone()[0]:
        raise IntegrityFault("Tables cannot be rebuilt while foreign keys are on.")
    conn.execute("DROP VIEW item_texts")
    for table in REFERENCED_TABLES:
        _never_reuse_ids(conn, table)
    conn.execute(_ITEM_VIEW)
    execute_script(conn, _RUNS)
    _move_asked_users(conn)
    _move_recipe(conn, "recipe", "recipes", "shares")
    conn.execute("ALTER TABLE recipes ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0")
    conn.execute(
        """UPDATE recipes SET bytes = 12 * (SELECT count(*) FROM recipe_anchors AS a
        WHERE a.user_id = recipes.user_id AND a.task = recipes.task AND a.bank_id = recipes.bank_id)"""
    )
    _move_recipe(conn, "stack", "stacks", "recipe")
    _hash_cores(conn)
    execute_script(conn, _MESSAGE_ANCHORS)
    _move_message_anchors(conn)
    execute_script(conn, _JOBS)
    for table, row, parent, _ in conn.execute("PRAGMA foreign_key_check").fetchmany(1):
        raise IntegrityFault(
            f"registry.db is damaged: row {row} of {table} refers to a row of {parent} that is not there.",
            hint="restore the store from a copy",
        )


def _never_reuse_ids(conn: sqlite3.Connection, table: str) -> None:
    """Rebuild a table with AUTOINCREMENT, with its rows, indexes and triggers."""
    (definition,) = conn.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone()
    others = "SELECT sql FROM sqlite_master WHERE tbl_name = ? AND type IN ('index', 'trigger') AND sql IS NOT NULL"
    kept = [sql for (sql,) in conn.execute(others, (table,))]
    columns = definition.partition("(")[2].replace("INTEGER PRIMARY KEY", "INTEGER PRIMARY KEY AUTOINCREMENT", 1)
    for statement in (
        f"CREATE TABLE new_{table} ({columns}",
        f"INSERT INTO new_{table} SELECT * FROM {table}",
        f"DROP TABLE {table}",
        f"ALTER TABLE new_{table} RENAME TO {table}",
        *kept,
    ):
        conn.execute(statement)


def _move_asked_users(conn: sqlite3.Connection) -> None:
    """The users that adaptations were asked for, from names in documents to rows; removed users are left out."""
    for run_id, text in conn.execute("SELECT id, config FROM runs WHERE kind = 'adaptation'").fetchall():
        try:
            config = json.loads(text)
            names = config["asked"].pop("users")
        except (ValueError, KeyError, TypeError, AttributeError):
            conn.execute("DELETE FROM runs WHERE id = ?", (run_id,))
            continue
        config["asked"]["everybody"] = names is None
        ids = [row[0] for name in names or () if (row := _find_user(conn, name)) is not None]
        conn.executemany("INSERT INTO run_users VALUES (?, ?, ?)", ((run_id, i, user) for i, user in enumerate(ids)))
        conn.execute("UPDATE runs SET config = ? WHERE id = ?", (_dump(config), run_id))


def _move_recipe(conn: sqlite3.Connection, singular: str, plural: str, column: str) -> None:
    """Turn a table's packed anchors (uint32 id, float32 similarity, float32 weight) into rows."""
    execute_script(conn, _ANCHOR_ROWS.format(singular=singular, plural=plural))
    anchors = set(conn.execute("SELECT id, bank_id FROM anchors"))
    entry = struct.Struct("<Iff")
    stored = conn.execute(f"SELECT user_id, task, bank_id, {column} FROM {plural}").fetchall()
    for user_id, task, bank_id, packed in stored:
        key, entries = (user_id, task, bank_id), None
        with contextlib.suppress(struct.error, TypeError):
            entries = list(entry.iter_unpack(packed))
        if entries is None or not all(
            (anchor, bank_id) in anchors and math.isfinite(similarity + weight)
            for anchor, similarity, weight in entries
        ):
            conn.execute(f"DELETE FROM {plural} WHERE user_id = ? AND task = ? AND bank_id = ?", key)
            continue
        rows = ((*key, position, *values) for position, values in enumerate(entries))
        conn.executemany(f"INSERT INTO {singular}_anchors VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    conn.execute(f"ALTER TABLE {plural} DROP COLUMN {column}")


def _hash_cores(conn: sqlite3.Connection) -> None:
    conn.execute("ALTER TABLE stacks ADD COLUMN numbers_sha256 TEXT")
    rows = conn.execute("SELECT rowid, numbers FROM stacks WHERE numbers IS NOT NULL").fetchall()
    conn.executemany(
        "UPDATE stacks SET numbers_sha256 = ? WHERE rowid = ?",
        ((sha256(numbers).hexdigest(), row) for row, numbers in rows),
    )


def _move_message_anchors(conn: sqlite3.Connection) -> None:
    """Turn the names of anchors in messages' documents into rows."""
    for message_id, text in conn.execute("SELECT id, source FROM messages WHERE source LIKE '%anchors%'").fetchall():
        try:
            source = json.loads(text)
        except ValueError:
            source = {}
        names: Sequence[Any] = source.get("anchors") or ()
        found = [_find_user(conn, name) for name in names]
        rows = ((message_id, position, user and user[0]) for position, user in enumerate(found))
        conn.executemany("INSERT INTO message_anchors VALUES (?, ?, ?)", rows)
        if names:
            conn.execute("UPDATE messages SET source = ? WHERE id = ?", (_dump({**source, "anchors": []}), message_id))


def _find_user(conn: sqlite3.Connection, name: str) -> tuple[int] | None:
    found: tuple[int] | None = conn.execute("SELECT id FROM users WHERE name = ?", (name,)).fetchone()
    return found


def _dump(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, sort_keys=True)
