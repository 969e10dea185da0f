"""Running jobs and the users whose data they use. A user whom a job holds cannot be removed.

A job holds a file lock, which the system releases when its process ends. Rows name the job's users.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from mta_cli.errors import Command, Flag, MtaError, NotFound, StoreBusy, UserInUse, UsersChanged
from store.connection import Connection
from store.process_lock import lock_path, process_lock

_HELD_HERE: set[tuple[Path, int]] = set()
"""The running jobs of this process, as (store, job id)."""


class Jobs:
    """The running jobs, each with the users that it uses."""

    def __init__(self, root: Path, db: Connection) -> None:
        self._root, self._db = root, db

    @contextlib.contextmanager
    def hold_users(self, title: str, user_ids: Iterable[int], *, consenting: bool = False) -> Iterator[None]:
        """Inside the block these users cannot be removed and cannot withdraw consent. `title` names the job and must
        not contain a user's name.

        Raises NotFound if the only user was removed, UsersChanged if one of several was removed or, with `consenting`,
        withdrew consent, and StoreBusy while another process writes. In a read-only store no user is held.
        """
        ids = json.dumps(sorted(set(user_ids)))
        if not self._db.writable:
            yield
            return
        with contextlib.ExitStack() as held:
            with self._db.transaction():
                self._remove_ended_jobs()
                self._require_users(ids, consenting)
                job_id = self._db.insert_row("jobs", {"title": title})
                held.callback(self._remove_lock, job_id)
                held.enter_context(process_lock(self._root, _lock_name(job_id), 0, title))
                rows = "INSERT INTO job_users (user_id, job_id) SELECT value, ? FROM json_each(?)"
                self._db.execute_write(rows, (job_id, ids))
                _HELD_HERE.add((self._root, job_id))
            try:
                yield
            finally:
                _HELD_HERE.discard((self._root, job_id))
                with contextlib.suppress(MtaError):  # a row that stays is harmless: without its lock it holds no user
                    self._remove_job(job_id)

    def running_jobs(self, *, elsewhere: bool = False) -> list[tuple[str, int]]:
        """Title and number of users of each running job, oldest first; with `elsewhere` only jobs of other
        processes.
        """
        sql = """SELECT id, title, (SELECT count(*) FROM job_users WHERE job_id = jobs.id) FROM jobs ORDER BY id"""
        rows = self._db.fetch_tuples(sql)
        if elsewhere:
            rows = [row for row in rows if (self._root, row[0]) not in _HELD_HERE]
        return [(title, users) for job_id, title, users in rows if self._is_running(job_id)]

    def require_unused(self, user_id: int, name: str) -> None:
        """Raises UserInUse if a running job holds the user."""
        sql = "SELECT id, title FROM jobs WHERE id IN (SELECT job_id FROM job_users WHERE user_id = ?) ORDER BY id"
        for job_id, title in self._db.fetch_tuples(sql, (user_id,)):
            if self._is_running(job_id):
                raise UserInUse(
                    f"The {title} is using {name}'s items.",
                    hint=("stop that job, or wait until it has ended: ", Flag("wait")),
                )

    def _require_users(self, ids: str, consenting: bool) -> None:
        total = len(json.loads(ids))
        sql = "SELECT count(*), total(can_anchor) FROM users WHERE id IN (SELECT value FROM json_each(?))"
        ((there, consented),) = self._db.fetch_tuples(sql, (ids,))
        if there < total == 1:
            raise NotFound("The user was removed.", hint=(Command("user list"), " shows all users"))
        if there < total:
            raise UsersChanged("Users were removed while this job started.", hint="run the command again")
        if consenting and consented < total:
            raise UsersChanged("A user withdrew consent while this job started.", hint="run the command again")

    def _is_running(self, job_id: int) -> bool:
        try:
            with process_lock(self._root, _lock_name(job_id), 0, "running this job"):
                return False
        except StoreBusy:
            return True

    def _remove_ended_jobs(self) -> None:
        for (job_id,) in self._db.fetch_tuples("SELECT id FROM jobs"):
            if not self._is_running(job_id):
                self._remove_job(job_id)
                self._remove_lock(job_id)

    def _remove_job(self, job_id: int) -> None:
        self._db.execute_write("DELETE FROM jobs WHERE id = ?", (job_id,))

    def _remove_lock(self, job_id: int) -> None:
        with contextlib.suppress(OSError, MtaError):
            self._db.require_not_moved()  # the lock of another store may have this path
            lock_path(self._root, _lock_name(job_id)).unlink(missing_ok=True)


def _lock_name(job_id: int) -> str:
    return f"job-{job_id}"
