"""Adaptations requested by clients: one at a time, each as a process `mta user adapt`."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

from mta_cli.serving.errors import ApiError

if TYPE_CHECKING:
    from store.records import User

MAX_JOBS, MAX_WAITING = 1_000, 100  # the most jobs that are remembered, and that may wait
LINE_LENGTH = 500


@dataclass
class AdaptJob:
    """An adaptation. `who` is the id of the key that requested it; only this key can see the job."""

    id: str
    user: str
    task: str | None
    shots: int | None
    who: str
    status: str = "queued"
    error: str | None = None
    result: Any = None

    def as_json(self) -> dict[str, Any]:
        """The job as JSON for a client."""
        shown = {"id": self.id, "object": "job", "status": self.status, "user": self.user, "task": self.task}
        return shown | {"error": self.error, "result": self.result}


class AdaptJobs:
    """The queue of jobs of one server. `flags` are put after `user adapt` in every command line."""

    def __init__(self, store: Path, flags: list[str]) -> None:
        self._store, self._flags = store, flags
        self._jobs: OrderedDict[str, AdaptJob] = OrderedDict()
        self._queue: Queue[AdaptJob | None] = Queue()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="adapt jobs", daemon=True)
        self._thread.start()

    def add(self, user: User, task: str | None, shots: int | None, who: str) -> dict[str, Any]:
        """Queue a user's adaptation and return it as JSON. `who` is the key's id. Raises ApiError if too many wait."""
        if self._queue.qsize() >= MAX_WAITING:
            raise ApiError(429, f"{MAX_WAITING} adaptations already wait: try again later.", code="queue_full")
        job = AdaptJob(f"job-{secrets.token_hex(8)}", user.name, task, shots, who)
        self._jobs[job.id] = job
        while len(self._jobs) > MAX_JOBS:
            self._jobs.popitem(last=False)
        self._queue.put(job)
        return job.as_json()

    def find(self, number: str, who: str) -> dict[str, Any]:
        """The job with the id `number`, as JSON. Raises ApiError if the key with the id `who` requested no such job."""
        job = self._jobs.get(number)
        if job is None or job.who != who:
            raise ApiError(404, f"There is no job {number!r:.100}.", code="not_found")
        return job.as_json()

    def drop_users(self, gone: set[str]) -> None:
        """Remove the jobs of the users with these names."""
        self._jobs = OrderedDict((number, job) for number, job in self._jobs.items() if job.user not in gone)

    @property
    def users(self) -> set[str]:
        """The names of the users with recorded jobs."""
        return {job.user for job in self._jobs.values()}

    def stop(self) -> None:
        """Stop the running job, which `mta user adapt` can resume, and start no other."""
        self._stopped = True
        self._queue.put(None)
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if self._stopped:
                return
            if job.id in self._jobs:
                try:
                    self._run_job(job)
                except Exception as error:  # one failed job must not end the thread
                    job.status, job.error = "failed", f"{type(error).__name__}: {error}"[:LINE_LENGTH]

    def _run_job(self, job: AdaptJob) -> None:
        job.status = "running"
        command = [sys.executable, "-m", "mta_cli", "--store", str(self._store)]
        command += ["user", "adapt", "--json", *self._flags]
        command += ["--task", job.task] if job.task else []
        command += ["--shots", str(job.shots)] if job.shots else []
        command += ["--", job.user]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        output, errors = self._process.communicate()
        if self._process.returncode == 0:
            job.status, job.result = "succeeded", json.loads(output or "null")
        else:
            lines = [line for line in errors.splitlines() if line.strip()]
            told = next(
                (line for line in reversed(lines) if not line.startswith("hint:")),
                "the adaptation failed without a message",
            )
            job.status, job.error = "failed", told[:LINE_LENGTH]
