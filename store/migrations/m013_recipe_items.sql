-- The hash of the items whose likelihood a recipe was made from; empty where its weights need none, and for recipes of
-- earlier versions.

ALTER TABLE recipes ADD COLUMN items_hash TEXT NOT NULL DEFAULT '';
