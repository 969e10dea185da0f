"""Runs: every execution of a job, with its settings, steps and outcome. Knows no job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import NotFound
from store.connection import Connection
from store.json_columns import dump_json, load_json_columns
from store.process import is_process_alive, utc_now
from store.records import Run

NON_USER_RUN_KINDS = ("bank build", "bank refresh", "adaptation", "eval run", "eval tune")
"""Kinds of runs whose subject is a bank or an evaluation; that of any other may be a person."""

_SELECT_RUN = "SELECT id, kind, subject, status, config, result, error, pid, started, ended FROM runs"


@dataclass(frozen=True)
class RunStep:
    """One step of a run. `unit` says what was worked on, such as an anchor."""

    run_id: int
    unit: str
    step: int
    loss: float | None
    tokens: int
    seconds: float


class Runs:
    """The history of jobs."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def start_run(self, kind: str, subject: str, config: dict[str, Any]) -> Run:
        """A new run by this process. `subject` is whom or what it is about: a user's name, a bank.

        Documents of runs may hold people's names as values, never as keys: so they can be forgotten.
        """
        sql = "INSERT INTO runs (kind, subject, config, pid, started) VALUES (?, ?, ?, ?, ?)"
        row = self._db.execute_write(sql, (kind, subject, dump_json(config), os.getpid(), utc_now())).lastrowid
        assert row is not None
        return self.get(row)

    def record_step(self, run_id: int, unit: str, step: int, loss: float | None, tokens: int, seconds: float) -> None:
        """Record one step of a run."""
        sql = "REPLACE INTO steps (run_id, unit, step, loss, tokens, seconds) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.execute_write(sql, (run_id, unit, step, loss, tokens, seconds))

    def finish_run(self, run_id: int, result: dict[str, Any]) -> None:
        """The run is done."""
        sql = "UPDATE runs SET status = 'done', result = ?, ended = ? WHERE id = ?"
        self._db.execute_write(sql, (dump_json(result), utc_now(), run_id))

    def fail_run(self, run_id: int, error: str, interrupted: bool = False) -> None:
        """The run ended early: it failed, or somebody stopped it."""
        sql = "UPDATE runs SET status = ?, error = ?, ended = ? WHERE id = ?"
        self._db.execute_write(sql, ("interrupted" if interrupted else "failed", error, utc_now(), run_id))

    def get(self, run_id: int) -> Run:
        """The run of this number. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_RUN} WHERE id = ?", (run_id,))
        if row is None:
            raise NotFound(f"There is no run {run_id}.")
        return _run_from_row(row)

    def all(self, limit: int = 50) -> list[Run]:
        """The `limit` latest runs, newest first."""
        return [_run_from_row(row) for row in self._db.fetch_dicts(f"{_SELECT_RUN} ORDER BY id DESC LIMIT ?", (limit,))]

    def of_subject(self, subject: str) -> list[Run]:
        """Every run about a user or bank, newest first."""
        return [
            _run_from_row(row)
            for row in self._db.fetch_dicts(f"{_SELECT_RUN} WHERE subject = ? ORDER BY id DESC", (subject,))
        ]

    def of_user(self, name: str) -> list[Run]:
        """Every run about a user, newest first; banks and evaluations may be called as somebody is."""
        return [run for run in self.of_subject(name) if run.kind not in NON_USER_RUN_KINDS]

    def steps(self, run_id: int) -> list[RunStep]:
        """The run's steps, in the order in which they were taken."""
        sql = "SELECT run_id, unit, step, loss, tokens, seconds FROM steps WHERE run_id = ? ORDER BY rowid"
        return [RunStep(**row) for row in self._db.fetch_dicts(sql, (run_id,))]


def _run_from_row(row: dict[str, Any]) -> Run:
    pid = row.pop("pid")
    if row["status"] == "running" and not is_process_alive(pid):
        row["status"] = "interrupted"
    return Run(**load_json_columns(row, "config", "result"))
