"""Evaluations, the users of their folds, and tuned settings. Knows no method and no metric.

The answers are in `predictions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mta_cli.errors import Command, NotFound
from store.columns import dump_json, load_json_columns, utc_now
from store.connection import Connection
from store.tables.adapters import Adapters
from store.tables.predictions import Predictions

_SELECT_EVALUATION = "SELECT id, task, bank_id, config, result, created, key, status FROM evaluations"

FoldMember = tuple[int, int, str]
"""(fold, user id, role), where a role is bank, tuning or test."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its design and its result. `status`: running, done.

    `key` hashes the design; None for an evaluation of stored models.
    """

    id: int
    task: str
    bank_id: int | None
    config: dict[str, Any]
    result: dict[str, Any]
    created: str
    key: str | None = None
    status: str = "done"

    @property
    def label(self) -> str:
        """The evaluation's name, which is also the subject of its runs."""
        return f"evaluation {self.id}"


@dataclass(frozen=True)
class TunedSettings:
    """The settings that were chosen for a method in a fold, and all trials."""

    fold: int
    method: str
    settings: dict[str, Any]
    trials: list[dict[str, Any]]


class Evaluations:
    """All evaluations; their answers are in the attribute `predictions`."""

    def __init__(self, db: Connection, adapters: Adapters) -> None:
        self._db, self._adapters = db, adapters
        self.predictions = Predictions(db)

    def add_evaluation(
        self, task: str, bank_id: int | None, config: Mapping[str, Any], result: Mapping[str, Any]
    ) -> int:
        """Store a finished evaluation of stored models; returns its id. `config` and `result` must not name users."""
        documents = {"config": dump_json(config), "result": dump_json(result)}
        return self._db.insert_row("evaluations", {"task": task, "bank_id": bank_id, **documents, "created": utc_now()})

    def get_or_create_evaluation(
        self, key: str, task: str, config: Mapping[str, Any], members: Iterable[FoldMember]
    ) -> Evaluation:
        """The evaluation with this key, running or done; if there is none, a new running one with these members."""
        with self._db.transaction():
            known = self.find_by_key(key)
            if known is not None:
                return known
            values = {"task": task, "config": dump_json(config), "result": "{}", "key": key, "status": "running"}
            number = self._db.insert_row("evaluations", {**values, "created": utc_now()})
            sql = "INSERT INTO eval_people (evaluation_id, fold, user_id, role) VALUES (?, ?, ?, ?)"
            self._db.execute_write_many(sql, ((number, *place) for place in members))
            return self.get(number)

    def finish_evaluation(self, evaluation_id: int, result: Mapping[str, Any]) -> None:
        """Store the result, replacing an earlier one; the order of its keys is kept."""
        sql = "UPDATE evaluations SET result = ?, status = 'done' WHERE id = ?"
        self._db.execute_write(sql, (dump_json(result, in_order=True), evaluation_id))

    def fold_members(self, evaluation_id: int) -> list[FoldMember]:
        """The members of all folds with their roles."""
        sql = "SELECT fold, user_id, role FROM eval_people WHERE evaluation_id = ? ORDER BY fold, user_id"
        return self._db.fetch_tuples(sql, (evaluation_id,))

    def set_fold_bank(self, evaluation_id: int, fold: int, bank_id: int, preset: str = "") -> None:
        """Record the bank of a fold; `preset` is the preset that it was built with, empty for none."""
        sql = "INSERT OR REPLACE INTO eval_banks (evaluation_id, fold, preset, bank_id) VALUES (?, ?, ?, ?)"
        self._db.execute_write(sql, (evaluation_id, fold, preset, bank_id))

    def fold_banks(self, evaluation_id: int) -> dict[tuple[int, str], int]:
        """The ids of the banks of all folds, by fold and preset."""
        sql = "SELECT fold, preset, bank_id FROM eval_banks WHERE evaluation_id = ? ORDER BY fold, preset"
        return {(fold, preset): bank for fold, preset, bank in self._db.fetch_tuples(sql, (evaluation_id,))}

    def save_tuning(self, evaluation_id: int, tuning: TunedSettings) -> None:
        """Store the settings chosen for a method in a fold, replacing earlier ones."""
        values = (evaluation_id, tuning.fold, tuning.method, dump_json(tuning.settings), dump_json(tuning.trials))
        columns = "evaluation_id, fold, method, settings, trials"
        self._db.execute_write(f"INSERT OR REPLACE INTO tunings ({columns}) VALUES (?, ?, ?, ?, ?)", values)

    def tunings(self, evaluation_id: int) -> list[TunedSettings]:
        """The chosen settings of all methods and folds."""
        sql = "SELECT fold, method, settings, trials FROM tunings WHERE evaluation_id = ? ORDER BY method, fold"
        return [
            TunedSettings(**load_json_columns(row, "settings", "trials"))
            for row in self._db.fetch_dicts(sql, (evaluation_id,))
        ]

    def remove(self, evaluation_id: int) -> dict[str, int]:
        """Remove an evaluation, its answers, and evaluation banks and adapters that nothing else uses.

        Returns the numbers of removed answers and banks.
        """
        self.get(evaluation_id)
        with self._db.transaction():
            answers = self._db.fetch_value("SELECT count(*) FROM predictions WHERE evaluation_id = ?", (evaluation_id,))
            self._db.execute_write("DELETE FROM evaluations WHERE id = ?", (evaluation_id,))
            left = "DELETE FROM banks WHERE purpose = 'eval' AND id NOT IN (SELECT bank_id FROM eval_banks)"
            banks = self._db.execute_write(left).rowcount
            self._adapters.remove_unreferenced()
        return {"answers": int(answers), "banks": banks}

    def get(self, evaluation_id: int) -> Evaluation:
        """The evaluation of this number. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_EVALUATION} WHERE id = ?", (evaluation_id,))
        if row is None:
            raise NotFound(f"There is no evaluation {evaluation_id}.", hint=Command("eval list"))
        return _evaluation_from_row(row)

    def find_by_key(self, key: str) -> Evaluation | None:
        """The evaluation with this key; None if there is none."""
        row = self._db.fetch_dict(f"{_SELECT_EVALUATION} WHERE key = ?", (key,))
        return None if row is None else _evaluation_from_row(row)

    def all(self) -> list[Evaluation]:
        """Every evaluation, newest first."""
        return [_evaluation_from_row(row) for row in self._db.fetch_dicts(f"{_SELECT_EVALUATION} ORDER BY id DESC")]


def _evaluation_from_row(row: dict[str, Any]) -> Evaluation:
    return Evaluation(**load_json_columns(row, "config", "result"))
