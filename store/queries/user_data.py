"""Reads the rows about one user that only an export of all the user's data needs. Changes nothing."""

from __future__ import annotations

from typing import Any

from store.columns import load_json_columns
from store.connection import Connection

RowDict = dict[str, Any]

_SELECT_PROFILES = "SELECT task, embedder, total, items FROM profiles WHERE user_id = ? ORDER BY task, embedder"
_SELECT_NEIGHBOURS = """SELECT banks.name AS bank, version, items.task, items.key AS id, vector FROM neighbours
JOIN items ON items.id = item_id JOIN banks ON banks.id = bank_id WHERE user_id = ? ORDER BY bank_id, item_id"""
_SELECT_FOLD_ROLES = """SELECT evaluation_id AS evaluation, task, fold, role FROM eval_people
JOIN evaluations ON evaluations.id = evaluation_id WHERE user_id = ? ORDER BY evaluation_id, fold"""
_SELECT_CELLS = """SELECT evaluation_id AS evaluation, fold, method, settings, bytes, seconds FROM cells
WHERE user_id = ? ORDER BY id"""
_SELECT_PREDICTIONS = """SELECT p.evaluation_id AS evaluation, v.task, c.fold, p.method, c.settings, p.prompt, p.answer,
p.gold, p.gold_loglik, p.gold_tokens, p.scores, p.whose, p.tokens, p.seconds
FROM predictions AS p JOIN evaluations AS v ON v.id = p.evaluation_id LEFT JOIN cells AS c ON c.id = p.cell_id
WHERE p.user_id = ? ORDER BY p.id"""

_SELECT_ASKED_RUNS = """SELECT id, kind, status, started, ended FROM runs
WHERE id IN (SELECT run_id FROM run_users WHERE user_id = ?) ORDER BY id"""


class UserData:
    """Rows about a user as dicts. Vectors are little-endian float32 bytes; vectors of neighbours are float16."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def profiles(self, user_id: int) -> list[RowDict]:
        """The user's profiles, one for each task and embedder fingerprint: `total` is the sum of `items` vectors."""
        return self._db.fetch_dicts(_SELECT_PROFILES, (user_id,))

    def neighbours(self, user_id: int) -> list[RowDict]:
        """The user's items that banks use in their label memory, with the embeddings (float16) of their inputs."""
        return self._db.fetch_dicts(_SELECT_NEIGHBOURS, (user_id,))

    def fold_roles(self, user_id: int) -> list[RowDict]:
        """The user's role in each fold of each evaluation."""
        return self._db.fetch_dicts(_SELECT_FOLD_ROLES, (user_id,))

    def eval_cells(self, user_id: int) -> list[RowDict]:
        """Each model that evaluations made for the user: method, settings, stored bytes, seconds to make."""
        return [load_json_columns(row, "settings") for row in self._db.fetch_dicts(_SELECT_CELLS, (user_id,))]

    def eval_predictions(self, user_id: int) -> list[RowDict]:
        """Answers to the user's queries in evaluations. `fold` and `settings` are None for stored models."""
        return [load_json_columns(row, "settings") for row in self._db.fetch_dicts(_SELECT_PREDICTIONS, (user_id,))]

    def runs_asked_for_user(self, user_id: int) -> list[RowDict]:
        """Runs about several users whose request named this user: kind, status and times."""
        return self._db.fetch_dicts(_SELECT_ASKED_RUNS, (user_id,))
