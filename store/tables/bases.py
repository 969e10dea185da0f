"""Bases and embedders that the store has met, by fingerprint. Knows neither their files nor how they are loaded."""

from __future__ import annotations

from mta_cli.errors import NotFound
from store.connection import Connection
from store.json_columns import dumps, loads
from store.records import Base

_BASE = "SELECT fingerprint, name, kind, detail FROM bases"


class Bases:
    """What is known of each model, `kind` "base" or "embedder"."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def put(self, base: Base) -> None:
        """Remember a model, in place of what was known of its fingerprint."""
        sql = "REPLACE INTO bases (fingerprint, name, kind, detail) VALUES (?, ?, ?, ?)"
        self._db.write(sql, (base.fingerprint, base.name, base.kind, dumps(base.detail)))

    def get(self, fingerprint: str) -> Base:
        """The model of this fingerprint. Raises NotFound."""
        row = self._db.row(f"{_BASE} WHERE fingerprint = ?", (fingerprint,))
        if row is None:
            raise NotFound(f"The store has met no model with fingerprint {fingerprint[:80]}.", hint="mta model list")
        return Base(**loads(row, "detail"))

    def all(self) -> list[Base]:
        """Every model, by name."""
        return [Base(**loads(row, "detail")) for row in self._db.rows(f"{_BASE} ORDER BY name, fingerprint")]
