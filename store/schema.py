"""The tables of the registry, as numbered forward migrations of one transaction each. Knows no rows.

Every migration also sets SQLite's `user_version`, so that an older program refuses a newer store with a clear message.
"""

from __future__ import annotations

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from store.relations import make_relational
from store.version import APPLICATION_ID

migrations = Migrations("mta")


def _apply_script(db: Database, script: str, version: int) -> None:
    for statement in script.split(";\n\n"):
        db.conn.execute(statement)
    db.conn.execute(f"PRAGMA user_version = {version}")


# A task's name may hold any characters. It enters the index as one hexadecimal word together with the user's id, so a
# search reads only that user's part of the index.
_USER_TABLES = """
CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    can_anchor INTEGER NOT NULL DEFAULT 1,
    created TEXT NOT NULL
);

CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    key TEXT NOT NULL,
    task TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL,
    time TEXT,
    UNIQUE (user_id, task, key)
);

CREATE INDEX items_in_order ON items (user_id, task, time, id);

CREATE TABLE queries (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    key TEXT NOT NULL,
    task TEXT NOT NULL,
    input TEXT NOT NULL,
    gold TEXT NOT NULL,
    time TEXT,
    UNIQUE (user_id, task, key)
);

CREATE TABLE profiles (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    embedder TEXT NOT NULL,
    total BLOB NOT NULL,
    items INTEGER NOT NULL,
    last_item INTEGER NOT NULL,
    PRIMARY KEY (user_id, task, embedder)
);

CREATE VIEW item_texts AS SELECT id, user_id || 'x' || hex(task) AS scope, input, output FROM items;

CREATE VIRTUAL TABLE items_fts USING fts5(scope, input, output, content='item_texts', content_rowid='id');

CREATE TRIGGER items_indexed AFTER INSERT ON items BEGIN
    INSERT INTO items_fts (rowid, scope, input, output)
    VALUES (new.id, new.user_id || 'x' || hex(new.task), new.input, new.output);
END;

CREATE TRIGGER items_unindexed AFTER DELETE ON items BEGIN
    INSERT INTO items_fts (items_fts, rowid, scope, input, output)
    VALUES ('delete', old.id, old.user_id || 'x' || hex(old.task), old.input, old.output);
END
"""

_TRAINING_TABLES = """
CREATE TABLE bases (
    fingerprint TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
);

CREATE TABLE tasks (name TEXT PRIMARY KEY, toml TEXT NOT NULL);

CREATE TABLE adapters (
    digest TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    base TEXT NOT NULL,
    task_adapter TEXT REFERENCES adapters,
    rank INTEGER NOT NULL,
    alpha REAL NOT NULL,
    targets TEXT NOT NULL,
    placement TEXT NOT NULL,
    dtype TEXT NOT NULL,
    seed INTEGER NOT NULL,
    data_hash TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    config TEXT NOT NULL,
    versions TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    loss_first REAL,
    loss_last REAL,
    created TEXT NOT NULL
);

CREATE INDEX adapters_on_task_adapter ON adapters (task_adapter);

CREATE TABLE doomed_files (digest TEXT PRIMARY KEY);

CREATE TABLE banks (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    key TEXT NOT NULL,
    task TEXT NOT NULL,
    base TEXT NOT NULL,
    embedder TEXT NOT NULL,
    task_adapter TEXT REFERENCES adapters,
    status TEXT NOT NULL DEFAULT 'building',
    seed INTEGER NOT NULL,
    config TEXT NOT NULL,
    tokens INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0,
    created TEXT NOT NULL,
    UNIQUE (name, version)
);

CREATE TABLE anchors (
    id INTEGER PRIMARY KEY,
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    user_id INTEGER REFERENCES users ON DELETE SET NULL,
    cluster INTEGER NOT NULL,
    cluster_size INTEGER NOT NULL,
    items INTEGER NOT NULL,
    digest TEXT REFERENCES adapters,
    loss_first REAL,
    loss_last REAL,
    stale INTEGER NOT NULL DEFAULT 0,
    UNIQUE (bank_id, cluster)
);

CREATE INDEX anchors_of_user ON anchors (user_id);

CREATE INDEX anchors_with_adapter ON anchors (digest);

CREATE TABLE recipes (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    method TEXT NOT NULL,
    shares BLOB NOT NULL,
    created TEXT NOT NULL,
    PRIMARY KEY (user_id, task, bank_id)
);

CREATE INDEX recipes_on_bank ON recipes (bank_id);

CREATE TABLE stacks (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES adapters,
    shots INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    loss_before REAL,
    loss_after REAL,
    recipe BLOB NOT NULL,
    bytes INTEGER NOT NULL,
    created TEXT NOT NULL,
    PRIMARY KEY (user_id, task, bank_id)
);

CREATE INDEX stacks_on_bank ON stacks (bank_id);

CREATE INDEX stacks_with_adapter ON stacks (digest)
"""

_RUN_AND_CHAT_TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'running',
    config TEXT NOT NULL,
    result TEXT,
    error TEXT,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    ended TEXT
);

CREATE INDEX runs_of_subject ON runs (subject);

CREATE TABLE steps (
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    unit TEXT NOT NULL,
    step INTEGER NOT NULL,
    loss REAL,
    tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (run_id, unit, step)
);

CREATE TABLE evaluations (
    id INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    bank_id INTEGER REFERENCES banks ON DELETE SET NULL,
    config TEXT NOT NULL,
    result TEXT NOT NULL,
    created TEXT NOT NULL
);

CREATE INDEX evaluations_of_bank ON evaluations (bank_id);

CREATE TABLE predictions (
    id INTEGER PRIMARY KEY,
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    query_id INTEGER NOT NULL,
    method TEXT NOT NULL,
    prompt TEXT NOT NULL,
    answer TEXT NOT NULL,
    gold TEXT NOT NULL,
    gold_loglik REAL,
    tokens INTEGER NOT NULL,
    seconds REAL NOT NULL
);

CREATE INDEX predictions_of_evaluation ON predictions (evaluation_id);

CREATE INDEX predictions_of_user ON predictions (user_id);

CREATE TABLE chats (
    id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    title TEXT NOT NULL,
    created TEXT NOT NULL
);

CREATE INDEX chats_of_user ON chats (user_id);

CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    chat_id INTEGER NOT NULL REFERENCES chats ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    source TEXT NOT NULL,
    created TEXT NOT NULL
);

CREATE INDEX messages_of_chat ON messages (chat_id);

CREATE TABLE tombstones (
    id INTEGER PRIMARY KEY,
    forgotten_at TEXT NOT NULL,
    items INTEGER NOT NULL,
    had_anchor INTEGER NOT NULL,
    erased INTEGER NOT NULL DEFAULT 0
)
"""

_EVALUATION_TABLES = """
ALTER TABLE banks ADD COLUMN purpose TEXT NOT NULL DEFAULT '';

ALTER TABLE evaluations ADD COLUMN key TEXT;

ALTER TABLE evaluations ADD COLUMN status TEXT NOT NULL DEFAULT 'done';

CREATE UNIQUE INDEX evaluations_by_key ON evaluations (key);

CREATE TABLE eval_people (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    role TEXT NOT NULL,
    PRIMARY KEY (evaluation_id, fold, user_id)
);

CREATE INDEX eval_people_of_user ON eval_people (user_id);

CREATE TABLE eval_banks (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    PRIMARY KEY (evaluation_id, fold)
);

CREATE INDEX eval_banks_on_bank ON eval_banks (bank_id);

CREATE TABLE cells (
    id INTEGER PRIMARY KEY,
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    method TEXT NOT NULL,
    settings TEXT NOT NULL,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    bytes INTEGER NOT NULL,
    seconds REAL NOT NULL,
    UNIQUE (evaluation_id, fold, method, settings, user_id)
);

CREATE INDEX cells_of_user ON cells (user_id);

CREATE TABLE tunings (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    method TEXT NOT NULL,
    settings TEXT NOT NULL,
    trials TEXT NOT NULL,
    PRIMARY KEY (evaluation_id, fold, method)
);

ALTER TABLE predictions ADD COLUMN cell_id INTEGER REFERENCES cells ON DELETE CASCADE;

ALTER TABLE predictions ADD COLUMN gold_tokens INTEGER;

ALTER TABLE predictions ADD COLUMN scores BLOB;

CREATE INDEX predictions_of_cell ON predictions (cell_id)
"""

# A stack is an adapter file of its own, or the matrix of a core between the factors of a shared file.
_CORE_COLUMNS = """
ALTER TABLE banks ADD COLUMN basis TEXT REFERENCES adapters;

ALTER TABLE stacks ADD COLUMN numbers BLOB;

ALTER TABLE stacks ADD COLUMN identity TEXT NOT NULL DEFAULT '';

ALTER TABLE stacks ADD COLUMN heldout_before REAL;

ALTER TABLE stacks ADD COLUMN heldout_after REAL;

UPDATE stacks SET identity = coalesce(
    (SELECT json_extract(config, '$.identity') FROM adapters WHERE adapters.digest = stacks.digest), ''
)
"""

# Items of a bank's users, for kNN on their inputs. They are deleted with their user and with the bank.
_NEIGHBOUR_TABLES = """
ALTER TABLE banks ADD COLUMN kernel TEXT;

CREATE TABLE neighbours (
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    item_id INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
    vector BLOB NOT NULL,
    PRIMARY KEY (bank_id, item_id)
) WITHOUT ROWID;

CREATE INDEX neighbours_of_item ON neighbours (item_id)
"""

_TABLES_WITH_SEALS = (
    "users",
    "items",
    "queries",
    "profiles",
    "neighbours",
    "recipes",
    "stacks",
    "tasks",
    "banks",
    "anchors",
    "adapters",
    "chats",
    "messages",
)
_ADD_SEALS = ";\n\n".join(f"ALTER TABLE {table} ADD COLUMN seal INTEGER" for table in _TABLES_WITH_SEALS)
_DROP_SEALS = ";\n\n".join(f"ALTER TABLE {table} DROP COLUMN seal" for table in _TABLES_WITH_SEALS)

# A random number for each user, which finds a forgotten user in a backup without their name.
_USER_UUIDS = """
ALTER TABLE users ADD COLUMN uuid TEXT;

UPDATE users SET uuid = lower(hex(randomblob(16)));

CREATE UNIQUE INDEX users_by_uuid ON users (uuid);

ALTER TABLE tombstones ADD COLUMN user_uuid TEXT
"""


@migrations()
def m001_people(db: Database) -> None:
    """Users, their items with a full-text index, queries and profiles."""
    _apply_script(db, f"PRAGMA application_id = {APPLICATION_ID};\n\n{_USER_TABLES}", 1)


@migrations()
def m002_training(db: Database) -> None:
    """Bases, tasks, adapters, banks, recipes and stacks."""
    _apply_script(db, _TRAINING_TABLES, 2)


@migrations()
def m003_records(db: Database) -> None:
    """Runs, evaluations, chats and tombstones."""
    _apply_script(db, _RUN_AND_CHAT_TABLES, 3)


@migrations()
def m004_evaluation(db: Database) -> None:
    """Evaluations of many methods: members of folds, cells, and chosen settings."""
    _apply_script(db, _EVALUATION_TABLES, 4)


@migrations()
def m005_cores(db: Database) -> None:
    """Stacks that are LoRA-XS cores between the main directions of a bank."""
    _apply_script(db, _CORE_COLUMNS, 5)


@migrations()
def m006_neighbours(db: Database) -> None:
    """The answers of a bank's users, for kNN."""
    _apply_script(db, _NEIGHBOUR_TABLES, 6)


@migrations()
def m007_seals(db: Database) -> None:
    """A column for a checksum of each row."""
    _apply_script(db, _ADD_SEALS, 7)


@migrations()
def m008_integrity(db: Database) -> None:
    """Checksums of rows are dropped; users and tombstones get what restoring a backup needs."""
    _apply_script(db, f"{_DROP_SEALS};\n\n{_USER_UUIDS}", 8)


@migrations()
def m009_relations(db: Database) -> None:
    """Runs, recipes, chats and jobs refer to users, banks and anchors by key; ids are never reused."""
    make_relational(db.conn)
    db.conn.execute("PRAGMA user_version = 9")


_PRESET_BANKS = """
CREATE TABLE new_eval_banks (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    preset TEXT NOT NULL DEFAULT '',
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    PRIMARY KEY (evaluation_id, fold, preset)
);

INSERT INTO new_eval_banks (evaluation_id, fold, bank_id) SELECT evaluation_id, fold, bank_id FROM eval_banks;

DROP TABLE eval_banks;

ALTER TABLE new_eval_banks RENAME TO eval_banks;

CREATE INDEX eval_banks_on_bank ON eval_banks (bank_id)
"""


@migrations()
def m010_preset_banks(db: Database) -> None:
    """A fold of an evaluation may have banks of several presets."""
    _apply_script(db, _PRESET_BANKS, 10)
