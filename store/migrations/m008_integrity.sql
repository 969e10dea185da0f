-- Checksums of rows are dropped; users and tombstones get what restoring a backup needs.

ALTER TABLE users DROP COLUMN seal;
ALTER TABLE items DROP COLUMN seal;
ALTER TABLE queries DROP COLUMN seal;
ALTER TABLE profiles DROP COLUMN seal;
ALTER TABLE neighbours DROP COLUMN seal;
ALTER TABLE recipes DROP COLUMN seal;
ALTER TABLE stacks DROP COLUMN seal;
ALTER TABLE tasks DROP COLUMN seal;
ALTER TABLE banks DROP COLUMN seal;
ALTER TABLE anchors DROP COLUMN seal;
ALTER TABLE adapters DROP COLUMN seal;
ALTER TABLE chats DROP COLUMN seal;
ALTER TABLE messages DROP COLUMN seal;

-- A random number for each user, which finds a forgotten user in a backup without their name.
ALTER TABLE users ADD COLUMN uuid TEXT;

UPDATE users SET uuid = lower(hex(randomblob(16)));

CREATE UNIQUE INDEX users_by_uuid ON users (uuid);

ALTER TABLE tombstones ADD COLUMN user_uuid TEXT;
