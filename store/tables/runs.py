"""Runs: every execution of a job, with its settings, steps and outcome.

The process of a run locks a file while it works. An unfinished run without that lock was interrupted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mta_cli.errors import NotFound
from store.columns import dump_json, load_json_columns, utc_now
from store.connection import Connection
from store.files import disk_fault, make_private_folder
from store.held_files import HeldFile, is_held, remove_abandoned
from store.process_lock import lock_path
from store.records import Run, User
from store.tables.users import user_from_row

_SELECT_RUN = """SELECT runs.id, runs.kind, runs.status, runs.config, runs.result, error, started, ended,
    coalesce(users.name, 'evaluation ' || evaluation_id, banks.name || ' v' || banks.version, '') AS subject
FROM runs LEFT JOIN users ON users.id = runs.user_id LEFT JOIN banks ON banks.id = runs.bank_id"""


@dataclass(frozen=True)
class RunStep:
    """One step of a run. `unit` names the part of the job, such as an anchor."""

    run_id: int
    unit: str
    step: int
    loss: float | None
    tokens: int
    seconds: float


class Runs:
    """All runs of jobs."""

    def __init__(self, db: Connection) -> None:
        self._db = db
        self._held: dict[int, HeldFile] = {}
        self.started_ids: list[int] = []
        """The runs that were started through this registry, oldest first."""

    def start_run(
        self,
        kind: str,
        config: dict[str, Any],
        *,
        user_id: int | None = None,
        bank_id: int | None = None,
        evaluation_id: int | None = None,
        asked_users: Sequence[int] = (),
    ) -> Run:
        """Store and return a new run, and hold its lock: the run counts as running until it is finished or this
        process ends. `user_id`, `bank_id` and `evaluation_id` say what the run is about.

        `asked_users` are the users named in the request. A run with a `user_id` is deleted with this user. Any other
        run is kept when users are removed, so its documents and units must not contain users' names.
        """
        subject = {"user_id": user_id, "bank_id": bank_id, "evaluation_id": evaluation_id}
        values = {"kind": kind, **subject, "config": dump_json(config), "started": utc_now()}
        run_id = 0
        try:
            with self._db.transaction():
                run_id = self._db.insert_row("runs", values)
                sql = "INSERT INTO run_users (run_id, position, user_id) VALUES (?, ?, ?)"
                self._db.execute_write_many(
                    sql, ((run_id, position, user) for position, user in enumerate(asked_users))
                )
                self._hold_lock(run_id)
                run = self.get(run_id)
        except BaseException:
            self._release_lock(run_id)  # after the rollback, the next run gets the same id and lock
            raise
        self.started_ids.append(run_id)
        return run

    def record_step(self, run_id: int, unit: str, step: int, loss: float | None, tokens: int, seconds: float) -> None:
        """Record one step of a run."""
        sql = "REPLACE INTO steps (run_id, unit, step, loss, tokens, seconds) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.execute_write(sql, (run_id, unit, step, loss, tokens, seconds))

    def finish_run(self, run_id: int, result: dict[str, Any]) -> None:
        """Mark the run as done."""
        sql = "UPDATE runs SET status = 'done', result = ?, ended = ? WHERE id = ?"
        self._db.execute_write(sql, (dump_json(result), utc_now(), run_id))
        self._release_lock(run_id)

    def fail_run(self, run_id: int, error: str, interrupted: bool = False) -> None:
        """Mark the run as failed or interrupted."""
        sql = "UPDATE runs SET status = ?, error = ?, ended = ? WHERE id = ?"
        self._db.execute_write(sql, ("interrupted" if interrupted else "failed", error, utc_now(), run_id))
        self._release_lock(run_id)

    def get(self, run_id: int) -> Run:
        """The run with this id. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_RUN} WHERE runs.id = ?", (run_id,))
        if row is None:
            raise NotFound(f"There is no run {run_id}; it may have been removed with its user.")
        return self._run_from_row(row)

    def all(self, limit: int = 50) -> list[Run]:
        """The `limit` latest runs, newest first."""
        return self._newest_first("TRUE", limit=limit)

    def jobs(self, limit: int) -> list[Run]:
        """The `limit` latest runs, newest first, without runs about a single user."""
        return self._newest_first("runs.user_id IS NULL", limit=limit)

    def of_kind(self, kind: str) -> list[Run]:
        """The 20 latest runs of a kind, newest first."""
        return self._newest_first("runs.kind = ?", kind, limit=20)

    def of_user(self, user_id: int) -> list[Run]:
        """Every run about a user, newest first."""
        return self._newest_first("runs.user_id = ?", user_id)

    def of_bank(self, bank_id: int) -> list[Run]:
        """Every run about a bank or about users' models on it, newest first."""
        return self._newest_first("runs.bank_id = ?", bank_id)

    def of_evaluation(self, evaluation_id: int) -> list[Run]:
        """Every run about an evaluation, newest first."""
        return self._newest_first("runs.evaluation_id = ?", evaluation_id)

    def asked_users(self, run_id: int) -> list[User]:
        """The users named in a run's request who still exist, in that order."""
        sql = """SELECT users.id, name, can_anchor, created FROM run_users JOIN users ON users.id = user_id
        WHERE run_id = ? ORDER BY position"""
        return [user_from_row(row) for row in self._db.fetch_tuples(sql, (run_id,))]

    def steps(self, run_id: int) -> list[RunStep]:
        """The run's steps, in order."""
        sql = "SELECT run_id, unit, step, loss, tokens, seconds FROM steps WHERE run_id = ? ORDER BY rowid"
        return [RunStep(**row) for row in self._db.fetch_dicts(sql, (run_id,))]

    def _newest_first(self, which: str, *values: object, limit: int = -1) -> list[Run]:
        rows = self._db.fetch_dicts(f"{_SELECT_RUN} WHERE {which} ORDER BY runs.id DESC LIMIT ?", (*values, limit))
        return [self._run_from_row(row) for row in rows]

    def remove_ended_locks(self) -> None:
        """Remove the lock files of runs whose processes have ended."""
        for path in lock_path(self._db.root, "run-0").parent.glob("run-*.lock"):
            with contextlib.suppress(OSError):
                remove_abandoned(path)

    def _run_from_row(self, row: dict[str, Any]) -> Run:
        if row["status"] == "running" and not is_held(self._lock(row["id"])):
            row["status"] = "interrupted"
        return Run(**load_json_columns(row, "config", "result"))

    def _hold_lock(self, run_id: int) -> None:
        path = self._lock(run_id)
        try:
            make_private_folder(path.parent)
            remove_abandoned(path)  # the lock of a process that was killed before its run was committed
            self._held[run_id] = HeldFile.create(path)
        except OSError as error:
            raise disk_fault(path, error) from error

    def _release_lock(self, run_id: int) -> None:
        with contextlib.suppress(OSError, KeyError):
            self._held.pop(run_id).remove()

    def _lock(self, run_id: int) -> Path:
        return lock_path(self._db.root, f"run-{run_id}")
