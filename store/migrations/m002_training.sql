-- Bases, tasks, adapters, banks, recipes and stacks.

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

CREATE INDEX stacks_with_adapter ON stacks (digest);
