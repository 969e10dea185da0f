-- The likelihoods of an answer under the user's own model and under other users' models, own first, as little-endian
-- float32: whose is it? And the groups of users that files give, by task: a repository, a team. Within a group, topic
-- does not pass for style.

ALTER TABLE predictions ADD COLUMN whose BLOB;

CREATE TABLE user_groups (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (user_id, task)
) WITHOUT ROWID;
