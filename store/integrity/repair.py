"""Repairs that lose no data: they rebuild the full-text index and remove abandoned files. Rows are never changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from store.connection import Connection
from store.files import AdapterFiles, disk_fault, remove_file
from store.held_files import remove_abandoned
from store.integrity.check import find_index_fault


@dataclass(frozen=True)
class Repair:
    """One fault, the action that repairs it, and the function that does it.

    `again` is the command that fetches removed files again, or says that nothing is lost.
    """

    what: str
    action: str
    again: str
    apply: Callable[[], object] = field(repr=False, compare=False)


def find_repairs(db: Connection, files: AdapterFiles) -> list[Repair]:
    """The repairs that a store with a readable database needs; empty if it needs none."""
    found = []
    if find_index_fault(db):
        rebuild = partial(db.execute_write, "INSERT INTO items_fts (items_fts) VALUES ('rebuild')")
        found.append(
            Repair("the full-text index differs from the items", "it is made again", "nothing is lost", rebuild)
        )
    known = {digest for (digest,) in db.fetch_tuples("SELECT digest FROM adapters")}
    for path in files.find_orphans(known):
        removal = partial(_remove_orphan, db, files, path)
        found.append(Repair(f"{path} is a file of no recorded adapter", "removed", "nothing uses it", removal))
    for path in files.find_abandoned_temporaries():
        what = f"{path} is a temporary file of a process that has ended"
        found.append(Repair(what, "removed", "nothing uses it", partial(_remove_temporary, path)))
    return found


def _remove_orphan(db: Connection, files: AdapterFiles, path: Path) -> None:
    """Remove an adapter file, unless a job has stored its row or reserved its digest since it was found."""
    with db.transaction() if db.writable else nullcontext():
        known = {digest for (digest,) in db.fetch_tuples("SELECT digest FROM adapters")}
        if path in files.find_orphans(known):
            remove_file(path)


def _remove_temporary(path: Path) -> None:
    try:
        remove_abandoned(path)
    except OSError as error:
        raise disk_fault(path, error, "removed") from error
