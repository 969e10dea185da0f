"""Evaluations and every single prediction in them. Knows neither methods nor metrics."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import NotFound
from store.connection import Connection
from store.process import now
from store.rows import dumps, loads

_EVALUATION = "SELECT id, task, bank_id, config, result, created FROM evaluations"
_COLUMNS = ("user_id", "query_id", "method", "prompt", "answer", "gold", "gold_loglik", "tokens", "seconds")


@dataclass(frozen=True)
class Evaluation:
    """One measurement: what was compared, how, and what came out."""

    id: int
    task: str
    bank_id: int | None
    config: dict[str, Any]
    result: dict[str, Any]
    created: str


@dataclass(frozen=True)
class Prediction:
    """One answer of one method to one query. `gold_loglik` is the log-likelihood of the gold answer, where computed."""

    user_id: int
    query_id: int
    method: str
    prompt: str
    answer: str
    gold: str
    gold_loglik: float | None
    tokens: int
    seconds: float


class Evaluations:
    """Every evaluation."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def add(self, task: str, bank_id: int | None, config: dict[str, Any], result: dict[str, Any]) -> int:
        """Store an evaluation; returns its number.

        Documents may hold people's names as values, never as keys: so they can be forgotten.
        """
        sql = "INSERT INTO evaluations (task, bank_id, config, result, created) VALUES (?, ?, ?, ?, ?)"
        row = self._db.write(sql, (task, bank_id, dumps(config), dumps(result), now())).lastrowid
        assert row is not None
        return row

    def predictions_add(self, evaluation_id: int, rows: Iterable[Prediction]) -> int:
        """Store an evaluation's predictions, all or none; returns how many."""
        columns = f"evaluation_id, {', '.join(_COLUMNS)}"
        sql = f"INSERT INTO predictions ({columns}) VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})"
        values = ((evaluation_id, *(getattr(row, name) for name in _COLUMNS)) for row in rows)
        return self._db.write_many(sql, values)

    def predictions(self, evaluation_id: int) -> list[Prediction]:
        """An evaluation's predictions, in the order in which they were made."""
        sql = f"SELECT {', '.join(_COLUMNS)} FROM predictions WHERE evaluation_id = ? ORDER BY id"
        return [Prediction(**row) for row in self._db.rows(sql, (evaluation_id,))]

    def get(self, evaluation_id: int) -> Evaluation:
        """The evaluation of this number. Raises NotFound."""
        row = self._db.row(f"{_EVALUATION} WHERE id = ?", (evaluation_id,))
        if row is None:
            raise NotFound(f"There is no evaluation {evaluation_id}.", hint="mta eval list")
        return Evaluation(**loads(row, "config", "result"))

    def all(self) -> list[Evaluation]:
        """Every evaluation, newest first."""
        rows = self._db.rows(f"{_EVALUATION} ORDER BY id DESC")
        return [Evaluation(**loads(row, "config", "result")) for row in rows]
