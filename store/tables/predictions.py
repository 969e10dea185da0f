"""Answers in evaluations: a cell is one method for one user in one fold. Knows neither methods nor metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from store.columns import dump_json
from store.connection import Connection


@dataclass(frozen=True)
class Prediction:
    """One answer of one method to one query.

    `gold_loglik` is the log-likelihood of the gold answer where computed (nats, summed over its `gold_tokens` tokens).
    `scores` are the scores of the task's labels. `whose` are the log-likelihoods of the gold answer under the user's
    own model, then under other users' models. Both are little-endian float32.
    """

    user_id: int
    query_id: int
    method: str
    prompt: str
    answer: str
    gold: str
    gold_loglik: float | None
    tokens: int
    seconds: float
    gold_tokens: int | None = None
    scores: bytes | None = None
    whose: bytes | None = None


@dataclass(frozen=True)
class EvalCell:
    """The model that a method made for a user in a fold: its size in `bytes`, and the `seconds` that it took."""

    fold: int
    method: str
    settings: Mapping[str, Any]
    user_id: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class UserPrediction:
    """One answer to a query of a user. `bytes` is the size of the user's model; None if stored models were measured."""

    method: str
    fold: int | None
    settings: dict[str, Any]
    bytes: int | None
    answer: str
    gold: str


_COLUMNS = [field.name for field in fields(Prediction)]
# Only the fold in which a user was tested counts, because other folds may have tuned settings on the user's answers.
_IS_TEST_USER = """(c.id IS NULL OR EXISTS (
    SELECT 1 FROM eval_people AS e
    WHERE e.evaluation_id = p.evaluation_id AND e.fold = c.fold AND e.user_id = p.user_id AND e.role = 'test'
))"""
_SELECT_USER_PREDICTIONS = f"""SELECT p.method, c.fold, c.settings, c.bytes, p.answer, p.gold
FROM predictions AS p LEFT JOIN cells AS c ON c.id = p.cell_id
WHERE +p.evaluation_id = ? AND p.user_id = ? AND {_IS_TEST_USER} ORDER BY p.id"""
_SELECT_LATEST_EVALUATION = f"""SELECT max(p.evaluation_id) FROM predictions AS p
JOIN evaluations AS v ON v.id = p.evaluation_id LEFT JOIN cells AS c ON c.id = p.cell_id
WHERE p.user_id = ? AND v.task = ? AND {_IS_TEST_USER}"""


class Predictions:
    """The answers of every evaluation."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def save_cells(self, evaluation_id: int, made: Iterable[tuple[EvalCell, Sequence[Prediction]]]) -> None:
        """Store cells with their predictions, all or none; an existing cell is replaced."""
        same = """evaluation_id = :evaluation_id AND fold = :fold AND method = :method AND settings = :settings
        AND user_id = :user_id"""
        with self._db.transaction():
            for cell, predictions in made:
                values = {"evaluation_id": evaluation_id, **vars(cell), "settings": dump_json(cell.settings)}
                self._db.execute_write(f"DELETE FROM cells WHERE {same}", values)
                number = self._db.insert_row("cells", values)
                self.add_predictions(evaluation_id, predictions, number)

    def add_predictions(self, evaluation_id: int, rows: Iterable[Prediction], cell_id: int | None = None) -> int:
        """Store predictions, all or none; returns how many."""
        columns = ["evaluation_id", "cell_id", *_COLUMNS]
        sql = f"INSERT INTO predictions ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        values = ((evaluation_id, cell_id, *(getattr(row, name) for name in _COLUMNS)) for row in rows)
        return self._db.execute_write_many(sql, values)

    def finished_cells(
        self, evaluation_id: int, fold: int, method: str, settings: Mapping[str, Any]
    ) -> dict[int, EvalCell]:
        """The cells of a method with these settings in a fold, by user id."""
        sql = """SELECT user_id, bytes, seconds FROM cells
        WHERE evaluation_id = ? AND fold = ? AND method = ? AND settings = ? ORDER BY user_id"""
        rows = self._db.fetch_tuples(sql, (evaluation_id, fold, method, dump_json(settings)))
        return {user: EvalCell(fold, method, settings, user, size, seconds) for user, size, seconds in rows}

    def answered_methods(self, evaluation_id: int) -> list[str]:
        """The evaluation's methods, in the order of their first answers."""
        sql = "SELECT method FROM predictions WHERE evaluation_id = ? GROUP BY method ORDER BY min(id)"
        return [method for (method,) in self._db.fetch_tuples(sql, (evaluation_id,))]

    def load_predictions(
        self,
        evaluation_id: int,
        *,
        fold: int | None = None,
        method: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> list[Prediction]:
        """All predictions of an evaluation, in the order of their creation.

        With `fold`, `method` and `settings`: only the predictions of these cells, by query id.
        """
        columns = ", ".join(f"predictions.{name}" for name in _COLUMNS)
        if fold is None:
            sql = f"SELECT {columns} FROM predictions WHERE evaluation_id = ? ORDER BY id"
            return [Prediction(*row) for row in self._db.fetch_tuples(sql, (evaluation_id,))]
        sql = f"""SELECT {columns} FROM cells JOIN predictions ON cell_id = cells.id
        WHERE cells.evaluation_id = ? AND fold = ? AND cells.method = ? AND settings = ? ORDER BY query_id"""
        return [
            Prediction(*row) for row in self._db.fetch_tuples(sql, (evaluation_id, fold, method, dump_json(settings)))
        ]

    def latest_evaluation_of_user(self, user_id: int, task: str) -> int | None:
        """The id of the newest evaluation of a task in which the user was tested; None if there is none."""
        number: int | None = self._db.fetch_value(_SELECT_LATEST_EVALUATION, (user_id, task))
        return number

    def user_predictions(self, evaluation_id: int, user_id: int) -> list[UserPrediction]:
        """The user's test answers in an evaluation, in the order of their creation."""
        rows = self._db.fetch_tuples(_SELECT_USER_PREDICTIONS, (evaluation_id, user_id))
        return [UserPrediction(row[0], row[1], json.loads(row[2]) if row[2] else {}, *row[3:]) for row in rows]
