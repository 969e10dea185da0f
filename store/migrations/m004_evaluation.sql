-- Evaluations of many methods: members of folds, cells, and chosen settings.

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

CREATE INDEX predictions_of_cell ON predictions (cell_id);
