"""Runs: every execution of a job, with its settings, steps and outcome. Knows no job."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import NotFound
from store.connection import Connection
from store.json_columns import dumps, loads
from store.process import alive, now
from store.records import Run

THINGS = ("bank build", "bank refresh", "adaptation", "eval run", "eval tune")
"""Kinds of runs whose subject is a bank or an evaluation; that of any other may be a person."""

_RUN = "SELECT id, kind, subject, status, config, result, error, pid, started, ended FROM runs"


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

    def start(self, kind: str, subject: str, config: dict[str, Any]) -> Run:
        """A new run by this process. `subject` is whom or what it is about: a user's name, a bank.

        Documents of runs may hold people's names as values, never as keys: so they can be forgotten.
        """
        sql = "INSERT INTO runs (kind, subject, config, pid, started) VALUES (?, ?, ?, ?, ?)"
        row = self._db.write(sql, (kind, subject, dumps(config), os.getpid(), now())).lastrowid
        assert row is not None
        return self.get(row)

    def step(self, run_id: int, unit: str, step: int, loss: float | None, tokens: int, seconds: float) -> None:
        """Record one step of a run."""
        sql = "REPLACE INTO steps (run_id, unit, step, loss, tokens, seconds) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.write(sql, (run_id, unit, step, loss, tokens, seconds))

    def finish(self, run_id: int, result: dict[str, Any]) -> None:
        """The run is done."""
        sql = "UPDATE runs SET status = 'done', result = ?, ended = ? WHERE id = ?"
        self._db.write(sql, (dumps(result), now(), run_id))

    def fail(self, run_id: int, error: str, interrupted: bool = False) -> None:
        """The run ended early: it failed, or somebody stopped it."""
        sql = "UPDATE runs SET status = ?, error = ?, ended = ? WHERE id = ?"
        self._db.write(sql, ("interrupted" if interrupted else "failed", error, now(), run_id))

    def get(self, run_id: int) -> Run:
        """The run of this number. Raises NotFound."""
        row = self._db.row(f"{_RUN} WHERE id = ?", (run_id,))
        if row is None:
            raise NotFound(f"There is no run {run_id}.")
        return _run(row)

    def all(self, limit: int = 50) -> list[Run]:
        """The `limit` latest runs, newest first."""
        return [_run(row) for row in self._db.rows(f"{_RUN} ORDER BY id DESC LIMIT ?", (limit,))]

    def of_subject(self, subject: str) -> list[Run]:
        """Every run about a user or bank, newest first."""
        return [_run(row) for row in self._db.rows(f"{_RUN} WHERE subject = ? ORDER BY id DESC", (subject,))]

    def of_person(self, name: str) -> list[Run]:
        """Every run about a user, newest first; banks and evaluations may be called as somebody is."""
        return [run for run in self.of_subject(name) if run.kind not in THINGS]

    def steps(self, run_id: int) -> list[RunStep]:
        """The run's steps, in the order in which they were taken."""
        sql = "SELECT run_id, unit, step, loss, tokens, seconds FROM steps WHERE run_id = ? ORDER BY rowid"
        return [RunStep(**row) for row in self._db.rows(sql, (run_id,))]


def _run(row: dict[str, Any]) -> Run:
    pid = row.pop("pid")
    if row["status"] == "running" and not alive(pid):
        row["status"] = "interrupted"
    return Run(**loads(row, "config", "result"))
