"""Locks between processes, which end with their process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mta_cli.errors import StoreBusy
from store.files import disk_fault, make_private_folder, sha256
from store.names import quote_text


@contextlib.contextmanager
def process_lock(root: Path, name: str, timeout: float, doing: str) -> Iterator[None]:
    """Hold a lock between processes. `name` names its file. Raises StoreBusy, saying what the other is `doing`.

    Raises BadInput if the disk is full or not writable, IntegrityFault if it fails.
    """
    import filelock

    path = lock_path(root, name)
    try:
        make_private_folder(path.parent)
        lock = filelock.FileLock(path, timeout=timeout)
        lock.acquire()
    except filelock.Timeout as error:
        raise StoreBusy(f"Another process is {doing}.", hint="wait for it to end, then run this again") from error
    except OSError as error:
        raise disk_fault(path, error) from error
    try:
        yield
    finally:
        lock.release()


def job_lock(root: Path, name: str, timeout: float = 0) -> contextlib.AbstractContextManager[None]:
    """Hold a job's lock between processes. Raises StoreBusy when another process holds it for `timeout` seconds."""
    return process_lock(root, sha256(name.encode()), timeout, f"at the same job ({quote_text(name)})")


def lock_path(root: Path, name: str) -> Path:
    """The path of a lock's file."""
    return root / "locks" / f"{name}.lock"
