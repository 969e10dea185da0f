-- Stacks that are LoRA-XS cores: matrices between the factors of a file that users share.

ALTER TABLE banks ADD COLUMN basis TEXT REFERENCES adapters;

ALTER TABLE stacks ADD COLUMN numbers BLOB;

ALTER TABLE stacks ADD COLUMN identity TEXT NOT NULL DEFAULT '';

ALTER TABLE stacks ADD COLUMN heldout_before REAL;

ALTER TABLE stacks ADD COLUMN heldout_after REAL;

UPDATE stacks SET identity = coalesce(
    (SELECT json_extract(config, '$.identity') FROM adapters WHERE adapters.digest = stacks.digest), ''
);
