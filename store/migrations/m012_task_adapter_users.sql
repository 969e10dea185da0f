-- The users whose items a bank's task adapter was trained on. Banks of earlier versions have none recorded.

CREATE TABLE task_adapter_users (
    bank_id INTEGER NOT NULL REFERENCES banks ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users ON DELETE CASCADE,
    PRIMARY KEY (bank_id, user_id)
) WITHOUT ROWID;

CREATE INDEX task_adapter_users_on_user ON task_adapter_users (user_id);
