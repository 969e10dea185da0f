"""Files that a living process holds: a lock says who lives.

Numbers of processes are given again, and differ between containers that share a store. The locks are those of `flock`:
the system ends them with their process. On Windows, which has none, all count as held.
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
    """An open and locked file or folder, which others take for abandoned once this process has ended.

    Raises OSError, BlockingIOError where it is held already and this one may not `wait`.
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self._descriptor: int | None = _open_locked(path, wait=wait)

    @classmethod
    def create(cls, path: Path, *, folder: bool = False) -> HeldFile:
        """A new, empty file or folder at `path`, for its owner alone."""
        while True:
            path.mkdir(mode=0o700) if folder else path.touch(mode=0o600, exist_ok=False)
            with contextlib.suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
                made = cls(path, wait=True)
                if made._is_there():
                    return made
                made.close()

    def move(self, path: Path) -> None:
        """Rename it to `path`. Raises OSError, and ends the lock then."""
        try:
            self.path.replace(path)
        except OSError:
            self.close()
            raise
        self.path = path

    def remove(self) -> None:
        """Remove it, if it is still at its path, and end the lock. Raises OSError, and holds it on then."""
        if self._is_there():  # a moved store may have another's file at this path
            _remove(self.path)
        self.close()

    def close(self) -> None:
        """End the lock. Closing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _is_there(self) -> bool:
        """Whether its path still leads to it."""
        if self._descriptor is None:
            return True
        return self.path.exists() and os.path.samestat(os.fstat(self._descriptor), self.path.stat())


@contextlib.contextmanager
def take_abandoned(path: Path) -> Iterator[bool]:
    """Whether no living process holds the file, or folder, at `path`; if so, this one holds it inside the block."""
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
    """Whether the file exists and a living process holds it."""
    with take_abandoned(path) as abandoned:
        return not abandoned and path.exists()


def remove_abandoned(path: Path) -> None:
    """Remove a file or folder that no living process holds. Raises OSError."""
    with take_abandoned(path) as abandoned:
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
        path.unlink(missing_ok=True)
