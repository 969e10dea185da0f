"""The rows of adapters, and their files: every row has a complete file. Knows no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from mta_cli.errors import Command, IntegrityFault, NotFound
from store.columns import dump_json, load_json_columns, utc_now
from store.connection import Connection
from store.files import AdapterFiles, sha256
from store.records import Adapter

_COLUMNS = [field.name for field in fields(Adapter)]
_SELECT_ADAPTER = f"SELECT {', '.join(_COLUMNS)} FROM adapters"
_WITH_USED_ADAPTERS = """
WITH RECURSIVE used (digest) AS (
    SELECT task_adapter FROM banks WHERE task_adapter IS NOT NULL
    UNION SELECT basis FROM banks WHERE basis IS NOT NULL
    UNION SELECT digest FROM anchors WHERE digest IS NOT NULL
    UNION SELECT digest FROM stacks
    UNION SELECT adapters.task_adapter FROM adapters JOIN used USING (digest) WHERE adapters.task_adapter IS NOT NULL
)
"""
# Selects a row if nothing uses the adapter `digest`. Unlike the query above, it reads only rows that refer to it.
_SELECT_IF_UNUSED = """
WITH RECURSIVE above (digest) AS (
    VALUES (:digest) UNION SELECT adapters.digest FROM adapters JOIN above ON adapters.task_adapter = above.digest
)
SELECT 1 FROM adapters WHERE digest = :digest AND NOT EXISTS (
    SELECT 1 FROM above WHERE EXISTS (SELECT 1 FROM banks WHERE above.digest IN (task_adapter, basis))
        OR EXISTS (SELECT 1 FROM anchors WHERE anchors.digest = above.digest)
        OR EXISTS (SELECT 1 FROM stacks WHERE stacks.digest = above.digest)
)
"""
_CONFIG_VALUE = "CASE WHEN json_valid(config) THEN json_extract(config, '$.' || :key) END"
_SELECT_LATEST_TRAINED = f"""{_SELECT_ADAPTER} WHERE rowid IN (
    SELECT rowid FROM adapters WHERE base = :base AND seconds > 0 AND {_CONFIG_VALUE} = :compute
        AND placement IN (SELECT value FROM json_each(:placements)) ORDER BY created DESC, digest DESC LIMIT :count
) ORDER BY created DESC, digest DESC"""


class Adapters:
    """All adapters of the store."""

    def __init__(self, db: Connection, files: AdapterFiles) -> None:
        self._db, self._files = db, files

    def write_file(self, content: bytes) -> tuple[str, int]:
        """Store the file of an adapter whose row will be added; returns its digest and its size in bytes.

        If `add_adapter` never follows, as after a crash, the file is removed when the store is next opened. Raises the
        errors of `AdapterFiles.write`.
        """
        self._files.claim_digest(sha256(content))
        return self._files.write(content)

    def add_adapter(self, adapter: Adapter) -> None:
        """Store the row of an adapter whose file is written; an existing row stays as it is.

        Raises IntegrityFault unless the file exists and matches its digest.
        """
        values = {name: getattr(adapter, name) for name in _COLUMNS}
        values |= {
            "config": dump_json(adapter.config),
            "versions": dump_json(adapter.versions),
            "created": adapter.created or utc_now(),
        }
        places = ", ".join(f":{name}" for name in _COLUMNS)
        with self._db.transaction():
            self._files.verify(adapter.digest)
            self._db.execute_write("DELETE FROM doomed_files WHERE digest = ?", (adapter.digest,))
            self._db.execute_write(
                f"INSERT INTO adapters ({', '.join(_COLUMNS)}) VALUES ({places}) ON CONFLICT DO NOTHING", values
            )
            self._db.after_commit(partial(self._files.release_claim, adapter.digest))

    def is_recorded(self, digest: str) -> bool:
        """Whether there is a row for this digest."""
        return bool(self._db.fetch_tuples("SELECT 1 FROM adapters WHERE digest = ?", (digest,)))

    def get(self, digest: str) -> Adapter:
        """The adapter with this digest. Raises NotFound."""
        row = self._db.fetch_dict(f"{_SELECT_ADAPTER} WHERE digest = ?", (digest,))
        if row is None:
            raise NotFound(f"There is no adapter {digest[:80]}.", hint=(Command("doctor"), " checks the store"))
        return _adapter_from_row(row)

    def find_by_config(self, key: str, value: str) -> Adapter | None:
        """The oldest adapter whose config has this `value` under `key`; None if there is none."""
        which = f"WHERE {_CONFIG_VALUE} = :value ORDER BY created, digest LIMIT 1"
        row = self._db.fetch_dict(f"{_SELECT_ADAPTER} {which}", {"key": key, "value": value})
        return _adapter_from_row(row) if row is not None else None

    def placements(self, base: str) -> list[str]:
        """The distinct placements (on which layers and tokens LoRAs act) of a base's adapters."""
        sql = "SELECT DISTINCT placement FROM adapters WHERE base = ? ORDER BY placement"
        return [placement for (placement,) in self._db.fetch_tuples(sql, (base,))]

    def latest_trained(self, base: str, compute: str, placements: Sequence[str], count: int) -> list[Adapter]:
        """The latest `count` adapters that were trained on this base with these placements, newest first.

        `compute` is the number format of their training.
        """
        asked = {
            "base": base,
            "key": "compute",
            "compute": compute,
            "placements": dump_json(placements),
            "count": count,
        }
        return [_adapter_from_row(row) for row in self._db.fetch_dicts(_SELECT_LATEST_TRAINED, asked)]

    def all(self) -> list[Adapter]:
        """All adapters, oldest first."""
        return [_adapter_from_row(row) for row in self._db.fetch_dicts(f"{_SELECT_ADAPTER} ORDER BY created, digest")]

    def verified_path(self, digest: str, *, base: str | None = None) -> Path:
        """The path of the adapter's file, after its content is verified.

        Raises NotFound for an unknown adapter, and IntegrityFault if its file is missing or damaged, or if `base` is
        given and the adapter was not trained on the base with this fingerprint.
        """
        adapter = self.get(digest)
        if base is not None and adapter.base != base:
            raise IntegrityFault(
                f"Adapter {digest} was trained on the base with fingerprint {adapter.base}, not {base}.",
                hint="use the base that it was trained on, or build a bank for this base",
            )
        self._files.verify(digest)
        return self._files.path(digest)

    def remove_unreferenced(self) -> list[str]:
        """Remove adapters that nothing uses: the rows, then, after the commit, the files. Returns their digests."""
        with self._db.transaction():
            sql = f"{_WITH_USED_ADAPTERS} SELECT digest FROM adapters WHERE digest NOT IN used ORDER BY digest"
            digests = [digest for (digest,) in self._db.fetch_tuples(sql)]
            self._delete_rows_and_files(digests)
        return digests

    def remove_if_unreferenced(self, digest: str) -> None:
        """Remove this adapter if nothing uses it."""
        with self._db.transaction():
            if self._db.fetch_tuples(_SELECT_IF_UNUSED, {"digest": digest}):
                self._delete_rows_and_files([digest])

    def delete_scheduled_files(self) -> None:
        """Delete the files of adapters whose rows are deleted; a crash between the two steps leaves some."""
        if not self._db.fetch_tuples("SELECT 1 FROM doomed_files LIMIT 1"):
            return
        with self._db.transaction():
            for (digest,) in self._db.fetch_tuples("SELECT digest FROM doomed_files"):
                self._files.delete(digest)
            self._db.execute_write("DELETE FROM doomed_files")

    def schedule_file_deletion(self, digests: Iterable[str]) -> None:
        """Let the files with these digests be deleted when the store is next opened."""
        self._db.execute_write_many("INSERT OR IGNORE INTO doomed_files VALUES (?)", ((digest,) for digest in digests))

    def delete_unrecorded_files(self, claims: Iterable[tuple[str, Path]]) -> None:
        """Delete files that ended processes wrote without adding their rows; `claims` are their reserved digests."""
        for digest, claim in claims:
            with self._db.transaction():
                if not self._db.fetch_tuples("SELECT 1 FROM adapters WHERE digest = ?", (digest,)):
                    self._files.delete(digest)
            claim.unlink(missing_ok=True)

    def _delete_rows_and_files(self, digests: list[str]) -> None:
        self._db.execute_write("PRAGMA defer_foreign_keys = ON")  # one adapter may be the task adapter of another
        self._db.execute_write_many("DELETE FROM adapters WHERE digest = ?", ((digest,) for digest in digests))
        self.schedule_file_deletion(digests)
        self._db.after_commit(self.delete_scheduled_files)


def _adapter_from_row(row: dict[str, Any]) -> Adapter:
    return Adapter(**load_json_columns(row, "config", "versions"))
