"""Locks that exclude other processes; the system releases them when their process ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mta_cli.errors import StoreBusy
from store.files import disk_fault, make_private_folder, sha256
from store.names import quote_text


@contextlib.contextmanager
def process_lock(root: Path, name: str, timeout: float, doing: str) -> Iterator[None]:
    """In the block this process holds the lock called `name`. Raises StoreBusy, saying what the other process is
    `doing`.

    Raises BadInput if the disk is full or not writable, IntegrityFault if it fails.
    """
    import filelock

    path = lock_path(root, name)
    try:
        make_private_folder(path.parent)
        lock = filelock.FileLock(path, timeout=timeout)
        lock.acquire()
    except filelock.Timeout as error:
        hint = "wait until it has ended, then run the command again"
        raise StoreBusy(f"Another process is {doing}.", hint=hint) from error
    except OSError as error:
        raise disk_fault(path, error) from error
    try:
        yield
    finally:
        lock.release()


def job_lock(root: Path, name: str, timeout: float = 0) -> contextlib.AbstractContextManager[None]:
    """In the block this process holds a job's lock. Raises StoreBusy if another one holds it for `timeout` seconds."""
    return process_lock(root, sha256(name.encode()), timeout, f"running the same job ({quote_text(name)})")


def lock_path(root: Path, name: str) -> Path:
    """The path of the file of the lock called `name`."""
    return root / "locks" / f"{name}.lock"
