-- A fold of an evaluation may have banks of several presets.

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

CREATE INDEX eval_banks_on_bank ON eval_banks (bank_id);
