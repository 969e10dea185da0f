-- `whose`: the log-likelihoods of the gold answer under the user's own model (first) and under other users' models, as
-- little-endian float32, to measure authorship. `user_groups`: the groups of users that files give, by task, such as a
-- repository or a team. Users of one group share topics, so comparing them measures style and not topic.

ALTER TABLE predictions ADD COLUMN whose BLOB;

CREATE TABLE user_groups (
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    task TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (user_id, task)
) WITHOUT ROWID;
