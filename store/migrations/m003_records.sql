-- Runs, evaluations, chats and tombstones.

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
);
