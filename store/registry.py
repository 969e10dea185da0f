"""The open store as one object: every table is an attribute (`registry.users`, `registry.banks`, …) with its own
module.

Those modules hold all queries of the project. Imports neither engine nor terminal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mta_cli.errors import MtaError
from store.connection import Connection
from store.erase import Eraser
from store.files import AdapterFiles
from store.process_lock import job_lock
from store.queries.user_data import UserData
from store.queries.user_table import UserTable
from store.tables.adapters import Adapters
from store.tables.banks import Banks
from store.tables.base_models import ModelRecords
from store.tables.chats import Chats
from store.tables.evaluations import Evaluations
from store.tables.items import Items
from store.tables.jobs import Jobs
from store.tables.knn_items import Neighbours
from store.tables.profiles import Profiles
from store.tables.recipes_and_stacks import Recipes, Stacks
from store.tables.runs import Runs
from store.tables.tasks import Tasks
from store.tables.users import Users

if TYPE_CHECKING:
    from store.integrity.repair import Repair
    from store.snapshots.serving_copy import ServingChoice
    from store.staged_records import StagedRecords


class Registry:
    """An open store. Use it in a `with` statement, from the thread that opened it."""

    def __init__(self, root: Path, db: Connection) -> None:
        self.root = root
        self._db = db
        self.files = AdapterFiles(root, db.require_not_moved)
        self.adapters = Adapters(db, self.files)
        self.jobs = Jobs(root, db)
        self._eraser = Eraser(db, self.adapters, self.files, self.jobs)
        self.users = Users(db, self._eraser, self.jobs)
        self.user_table = UserTable(db)
        self.items = Items(db, self._eraser)
        self.profiles = Profiles(db)
        self.models = ModelRecords(db)
        self.tasks = Tasks(db)
        self.banks = Banks(db, self.adapters)
        self.neighbours = Neighbours(db)
        self.recipes = Recipes(db)
        self.stacks = Stacks(db, self.adapters)
        self.runs = Runs(db)
        self.evaluations = Evaluations(db, self.adapters)
        self.chats = Chats(db)
        self.user_data = UserData(db)

    @classmethod
    def open(cls, root: Path, *, create: bool = False, timeout: float = 10.0) -> Registry:
        """Open the store in `root` and migrate it to the newest schema; with `create`, make it if it is missing.

        `timeout` is how many seconds a write waits for another process. A store without write permission can be read.
        Raises NotFound when there is none, IntegrityFault when the database is damaged, belongs to another program or
        has a schema that this program cannot read, BadInput when it cannot be made or read, StoreBusy when another
        process keeps a store of an older schema open.
        """
        opened = cls(root, Connection.open(root, create=create, timeout=timeout))
        try:
            opened._recover_after_crash()
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Close the store."""
        self._db.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def transaction(self) -> AbstractContextManager[None]:
        """All writes in the block are committed together or not at all; an inner transaction joins the outer one.

        Raises the errors of `Connection.transaction`.
        """
        return self._db.transaction()

    def job_lock(self, name: str, timeout: float = 0) -> AbstractContextManager[None]:
        """In the block this process holds a job's lock. Raises StoreBusy if another holds it for `timeout` seconds."""
        return job_lock(self.root, name, timeout)

    def hold_users(
        self, title: str, user_ids: Iterable[int], *, consenting: bool = False
    ) -> AbstractContextManager[None]:
        """In the block other processes cannot remove these users or withdraw their consent: see `Jobs.hold_users`."""
        return self.jobs.hold_users(title, user_ids, consenting=consenting)

    def stage_records(self) -> AbstractContextManager[StagedRecords]:
        """A temporary database for the records of a file while it is checked. Raises BadInput if it cannot be made."""
        from store.staged_records import StagedRecords

        return StagedRecords.open(self.root, self.files.checkpoint_folder)

    def check_integrity(self, *, names: bool = True) -> list[str]:
        """Every fault of the store, one line each; empty if it is sound. Without `names`, users are named by id."""
        from store.integrity.check import find_problems

        return find_problems(self._db, self.files, names=names)

    def check_database(self) -> list[str]:
        """Every fault of the database, without faults of files, one line each."""
        from store.integrity.check import find_database_problems

        return find_database_problems(self._db)

    def repairs(self) -> list[Repair]:
        """The repairs that the store needs and that lose no data; empty if it needs none."""
        from store.integrity.repair import find_repairs

        return find_repairs(self._db, self.files)

    def copy_database(self, path: Path) -> None:
        """Copy a consistent state of the database to a new file, without the bytes of removed users. Writers need not
        wait.

        Raises OSError if that file cannot be written, and the errors of `translate_sqlite_errors`.
        """
        self._db.copy_to(path)

    def write_serving_copy(self, path: Path, choice: ServingChoice) -> None:
        """Write the part of the database that answering needs, without users' texts, to the empty file `path`."""
        from store.snapshots.serving_copy import write_serving_copy

        write_serving_copy(self.root, path, choice, self._db.timeout)

    @property
    def data_version(self) -> int:
        """A number that changes when another connection has changed the store; own changes do not change it."""
        return int(self._db.fetch_value("PRAGMA data_version"))

    def count_rows(self) -> dict[str, int]:
        """The number of rows of each table, by table name."""
        from store.integrity.check import count_rows

        return count_rows(self._db)

    def _recover_after_crash(self) -> None:
        """Remove what crashed processes left: temporary files, files without rows, and bytes of removed users."""
        claims = self.files.remove_abandoned_temporaries()  # even in a copy of a snapshot: a stopped pull leaves some
        if not self._db.writable:
            return
        self.runs.remove_ended_locks()
        steps = (
            partial(self.adapters.delete_unrecorded_files, claims),
            self.adapters.delete_scheduled_files,
            self._eraser.purge_deleted_bytes,
        )
        with self._db.without_busy_timeout():  # so that no command waits here: the next opening can do this
            for step in steps:
                with contextlib.suppress(MtaError):
                    step()
