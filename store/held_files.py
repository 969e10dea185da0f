"""Files that a running process locks. The lock shows whether that process still runs.

Process ids are not used: they are reused, and containers that share a store number processes differently. The system
releases a `flock` lock when its process ends. Windows has no `flock`, so there every file counts as locked.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class HeldFile:
    """A file or folder that this process keeps open and locked. Once the process has ended, others may remove it.

    Raises OSError; BlockingIOError if another process has locked it and `wait` is false.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self._descriptor: int | None = _open_locked(path, wait=wait)

    @classmethod
    def create(cls, path: Path, *, folder: bool = False) -> HeldFile:
        """Create an empty file or folder at `path` that only its owner can use, and lock it."""
        while True:
            path.mkdir(mode=0o700) if folder else path.touch(mode=0o600, exist_ok=False)
            with contextlib.suppress(FileNotFoundError):  # another process removed it as abandoned before it was locked
                made = cls(path, wait=True)
                if made._is_at_its_path():
                    return made
                made.close()

    def move(self, path: Path) -> None:
        """Rename the file to `path`. Raises OSError, and releases the lock, if that fails."""
        try:
            self.path.replace(path)
        except OSError:
            self.close()
            raise
        self.path = path

    def remove(self) -> None:
        """Remove the file and release the lock, unless another file has its path. Raises OSError, and keeps the lock,
        if that fails.
        """
        if self._is_at_its_path():  # after a move of the store, the path may lead to a file of another store
            _remove(self.path)
        self.close()

    def close(self) -> None:
        """Release the lock. Closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_at_its_path(self) -> bool:
        if self._descriptor is None:
            return True
        return self.path.exists() and os.path.samestat(os.fstat(self._descriptor), self.path.stat())


@contextlib.contextmanager
def lock_if_abandoned(path: Path) -> Iterator[bool]:
    """Yields True if the file or folder at `path` exists and no running process has locked it; else False.

    If True, this process locks it in the block. Always False on Windows.
    """
    descriptor = None
    if fcntl is not None:
        with contextlib.suppress(OSError):  # held, gone, or not readable
            descriptor = _open_locked(path, wait=False)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether the file exists and a running process has locked it."""
    with lock_if_abandoned(path) as abandoned:
        return not abandoned and path.exists()


def remove_abandoned(path: Path) -> None:
    """Remove a file or folder unless a running process has locked it. Raises OSError."""
    with lock_if_abandoned(path) as abandoned:
        if abandoned:
            _remove(path)


def _open_locked(path: Path, *, wait: bool) -> int | None:
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        # SQLite's journal, if the file is a database whose writing was interrupted
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
