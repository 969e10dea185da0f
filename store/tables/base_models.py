"""The bases and embedders that the store has used, by fingerprint. Knows neither their files nor loading."""

from __future__ import annotations

from mta_cli.errors import Command, NotFound
from store.columns import dump_json, load_json_columns
from store.connection import Connection
from store.records import ModelRecord

_SELECT_MODEL = "SELECT fingerprint, name, kind, detail FROM bases"


class ModelRecords:
    """The records of models; `kind` is "base" or "embedder"."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def save_model(self, base: ModelRecord) -> None:
        """Store a model's record, replacing an earlier one of the same fingerprint."""
        sql = "REPLACE INTO bases (fingerprint, name, kind, detail) VALUES (?, ?, ?, ?)"
        self._db.execute_write(sql, (base.fingerprint, base.name, base.kind, dump_json(base.detail)))

    def get(self, fingerprint: str) -> ModelRecord:
        """The record of the model with this fingerprint. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_MODEL} WHERE fingerprint = ?", (fingerprint,))
        if row is None:
            raise NotFound(
                f"The store has no record of a model with fingerprint {fingerprint[:80]}.", hint=Command("model list")
            )
        return ModelRecord(**load_json_columns(row, "detail"))

    def all(self) -> list[ModelRecord]:
        """Every model, by name."""
        return [
            ModelRecord(**load_json_columns(row, "detail"))
            for row in self._db.fetch_dicts(f"{_SELECT_MODEL} ORDER BY name, fingerprint")
        ]
