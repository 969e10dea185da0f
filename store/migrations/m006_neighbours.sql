-- Items of a bank's users, for kNN on their inputs. They are deleted with their user and with the bank.

ALTER TABLE banks ADD COLUMN kernel TEXT;

CREATE TABLE neighbours (
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    item_id INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
    vector BLOB NOT NULL,
    PRIMARY KEY (bank_id, item_id)
) WITHOUT ROWID;

CREATE INDEX neighbours_of_item ON neighbours (item_id);
