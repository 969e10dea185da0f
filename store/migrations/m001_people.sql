-- Users, their items with a full-text index, queries and profiles.

PRAGMA application_id = 1297367345;

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

-- A task's name may hold any characters. It enters the index as one hexadecimal word together with the user's id, so a
-- search reads only that user's part of the index.
CREATE VIEW item_texts AS SELECT id, user_id || 'x' || hex(task) AS scope, input, output FROM items;

CREATE VIRTUAL TABLE items_fts USING fts5(scope, input, output, content='item_texts', content_rowid='id');

CREATE TRIGGER items_indexed AFTER INSERT ON items BEGIN
    INSERT INTO items_fts (rowid, scope, input, output)
    VALUES (new.id, new.user_id || 'x' || hex(new.task), new.input, new.output);
END;

CREATE TRIGGER items_unindexed AFTER DELETE ON items BEGIN
    INSERT INTO items_fts (items_fts, rowid, scope, input, output)
    VALUES ('delete', old.id, old.user_id || 'x' || hex(old.task), old.input, old.output);
END;
