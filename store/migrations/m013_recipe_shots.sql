-- How many of the user's items a recipe was made from; NULL: from none, or by an earlier version.

ALTER TABLE recipes ADD COLUMN shots INTEGER;
