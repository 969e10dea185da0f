-- The current schema. A change also needs a migration step for existing stores: see store/migrations/steps.py.

CREATE TABLE "users" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    can_anchor INTEGER NOT NULL DEFAULT 1,
    created TEXT NOT NULL,
    uuid TEXT);
CREATE UNIQUE INDEX users_by_uuid ON users (uuid);

CREATE TABLE user_groups (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (user_id, task)
) WITHOUT ROWID;

CREATE TABLE "items" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    key TEXT NOT NULL,
    task TEXT NOT NULL,
    input TEXT NOT NULL,
    output TEXT NOT NULL,
    time TEXT,
    UNIQUE (user_id, task, key)
);
CREATE INDEX items_in_order ON items (user_id, task, time, id);
CREATE TRIGGER items_indexed AFTER INSERT ON items BEGIN
    INSERT INTO items_fts (rowid, scope, input, output)
    VALUES (new.id, new.user_id || 'x' || hex(new.task), new.input, new.output);
END;
CREATE TRIGGER items_unindexed AFTER DELETE ON items BEGIN
    INSERT INTO items_fts (items_fts, rowid, scope, input, output)
    VALUES ('delete', old.id, old.user_id || 'x' || hex(old.task), old.input, old.output);
END;

CREATE TABLE "queries" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
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

CREATE TABLE "banks" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
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
    created TEXT NOT NULL, purpose TEXT NOT NULL DEFAULT '', basis TEXT REFERENCES adapters, kernel TEXT,
    UNIQUE (name, version)
);

CREATE TABLE task_adapter_users (
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    PRIMARY KEY (bank_id, user_id)
) WITHOUT ROWID;
CREATE INDEX task_adapter_users_on_user ON task_adapter_users (user_id);

CREATE TABLE "anchors" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
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

CREATE TABLE neighbours (
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    item_id INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
    vector BLOB NOT NULL,
    PRIMARY KEY (bank_id, item_id)
) WITHOUT ROWID;
CREATE INDEX neighbours_of_item ON neighbours (item_id);

CREATE TABLE recipes (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    method TEXT NOT NULL,
    created TEXT NOT NULL, bytes INTEGER NOT NULL DEFAULT 0, items_hash TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (user_id, task, bank_id)
);
CREATE INDEX recipes_on_bank ON recipes (bank_id);

CREATE TABLE recipe_anchors (
    user_id INTEGER NOT NULL,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    anchor_id INTEGER NOT NULL REFERENCES anchors,
    similarity REAL NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (user_id, task, bank_id, position),
    FOREIGN KEY (user_id, task, bank_id) REFERENCES recipes ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX recipe_anchors_of_anchor ON recipe_anchors (anchor_id);

CREATE TABLE stacks (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES adapters,
    shots INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    loss_before REAL,
    loss_after REAL,
    bytes INTEGER NOT NULL,
    created TEXT NOT NULL, numbers BLOB, identity TEXT NOT NULL DEFAULT '', heldout_before REAL, heldout_after REAL, numbers_sha256 TEXT,
    PRIMARY KEY (user_id, task, bank_id)
);
CREATE INDEX stacks_on_bank ON stacks (bank_id);
CREATE INDEX stacks_with_adapter ON stacks (digest);

CREATE TABLE stack_anchors (
    user_id INTEGER NOT NULL,
    task TEXT NOT NULL,
    bank_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    anchor_id INTEGER NOT NULL REFERENCES anchors,
    similarity REAL NOT NULL,
    weight REAL NOT NULL,
    PRIMARY KEY (user_id, task, bank_id, position),
    FOREIGN KEY (user_id, task, bank_id) REFERENCES stacks ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX stack_anchors_of_anchor ON stack_anchors (anchor_id);

CREATE TABLE "runs" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    user_id INTEGER REFERENCES users ON DELETE CASCADE,
    bank_id INTEGER REFERENCES banks ON DELETE SET NULL,
    evaluation_id INTEGER REFERENCES evaluations ON DELETE CASCADE,
    status TEXT NOT NULL DEFAULT 'running',
    config TEXT NOT NULL,
    result TEXT,
    error TEXT,
    started TEXT NOT NULL,
    ended TEXT
);
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

CREATE TABLE steps (
    run_id INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
    unit TEXT NOT NULL,
    step INTEGER NOT NULL,
    loss REAL,
    tokens INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (run_id, unit, step)
);

CREATE TABLE "evaluations" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task TEXT NOT NULL,
    bank_id INTEGER REFERENCES banks ON DELETE SET NULL,
    config TEXT NOT NULL,
    result TEXT NOT NULL,
    created TEXT NOT NULL,
    key TEXT, status TEXT NOT NULL DEFAULT 'done');
CREATE INDEX evaluations_of_bank ON evaluations (bank_id);
CREATE UNIQUE INDEX evaluations_by_key ON evaluations (key);

CREATE TABLE eval_people (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    role TEXT NOT NULL,
    PRIMARY KEY (evaluation_id, fold, user_id)
);
CREATE INDEX eval_people_of_user ON eval_people (user_id);

CREATE TABLE "eval_banks" (
    evaluation_id INTEGER NOT NULL REFERENCES evaluations ON DELETE CASCADE,
    fold INTEGER NOT NULL,
    preset TEXT NOT NULL DEFAULT '',
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    PRIMARY KEY (evaluation_id, fold, preset)
);
CREATE INDEX eval_banks_on_bank ON eval_banks (bank_id);

CREATE TABLE "cells" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
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
    seconds REAL NOT NULL,
    cell_id INTEGER REFERENCES cells ON DELETE CASCADE, gold_tokens INTEGER, scores BLOB, whose BLOB);
CREATE INDEX predictions_of_evaluation ON predictions (evaluation_id);
CREATE INDEX predictions_of_user ON predictions (user_id);
CREATE INDEX predictions_of_cell ON predictions (cell_id);

CREATE TABLE "chats" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    title TEXT NOT NULL,
    created TEXT NOT NULL
);
CREATE INDEX chats_of_user ON chats (user_id);

CREATE TABLE "messages" (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    chat_id INTEGER NOT NULL REFERENCES chats ON DELETE CASCADE,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    source TEXT NOT NULL,
    created TEXT NOT NULL
);
CREATE INDEX messages_of_chat ON messages (chat_id);

CREATE TABLE message_anchors (
    message_id INTEGER NOT NULL REFERENCES messages ON DELETE CASCADE,
    position INTEGER NOT NULL,
    user_id INTEGER REFERENCES users ON DELETE SET NULL,
    PRIMARY KEY (message_id, position)
) WITHOUT ROWID;
CREATE INDEX message_anchors_of_user ON message_anchors (user_id);

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

CREATE TABLE tombstones (
    id INTEGER PRIMARY KEY,
    forgotten_at TEXT NOT NULL,
    items INTEGER NOT NULL,
    had_anchor INTEGER NOT NULL,
    erased INTEGER NOT NULL DEFAULT 0,
    user_uuid TEXT);

CREATE VIRTUAL TABLE items_fts USING fts5(scope, input, output, content='item_texts', content_rowid='id');

CREATE TABLE doomed_files (digest TEXT PRIMARY KEY);

CREATE VIEW item_texts AS SELECT id, user_id || 'x' || hex(task) AS scope, input, output FROM items;
