"""Files of the store: written atomically, named by the SHA-256 of their content, verified when read."""

from __future__ import annotations

import contextlib
import difflib
import errno
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mta_cli.errors import BadInput, Command, IntegrityFault, MtaError, Words, did_you_mean
from store.held_files import HeldFile, is_held, remove_abandoned

MIN_ORPHAN_AGE_SECONDS = 3600
"""An adapter file without a database row is removed as an orphan once it is this old."""

MAX_NAMES_READ = 10_000
"""To suggest a name for a missing file, at most this many names of its folder are read."""

_SUFFIX = ".safetensors"
_DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
_TEMPORARY_NAME_PATTERN = re.compile(r"\.mta-[0-9a-f]+(?:-([0-9a-f]+))?\.tmp")
_TEMPORARY_GLOB = ".*.tmp"
_RESTORE_HINT: Words = (
    Command("restore", "FILE"),
    " replaces the store by a backup; without one, remove the bank or stack that uses the file and build it again",
)


def missing_file_hint(path: Path, otherwise: Words | None = None) -> Words | None:
    """A hint with the names in a missing file's folder that are most similar to it; `otherwise` if there are none."""
    try:
        with os.scandir(path.parent) as entries:
            known = [entry.name for entry in itertools.islice(entries, MAX_NAMES_READ)]
    except (OSError, ValueError):
        return otherwise
    near = difflib.get_close_matches(path.name[:200], known, n=3)
    return did_you_mean([str(path.with_name(name)) for name in near], otherwise or "") or None


def atomic_write(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`. After a crash the file has either its old content or all of the new.

    Missing folders are made. Raises the same errors as `replace_file`.
    """
    with replace_file(path, path.parent) as temporary:
        _write_durably(temporary, data)


@contextlib.contextmanager
def replace_file(path: Path, folder: Path) -> Iterator[Path]:
    """Yields a temporary path in `folder` to be written. After the block, that file replaces `path`.

    `folder` is made if needed. Raises BadInput if the disk is full or not writable, IntegrityFault if it fails; no
    temporary file stays.
    """
    try:
        with hold_temporary(folder) as temporary:
            yield temporary
            temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_fault(path, error) from error


def move_file(source: Path, target: Path) -> None:
    """Move a file, so that it also survives a power cut; the target's folder is made.

    Raises the error that `disk_fault` returns.
    """
    try:
        make_private_folder(target.parent)
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        raise disk_fault(target, error) from error


def make_private_folder(folder: Path) -> None:
    """Make a folder and its missing parents, accessible only to their owner. Raises OSError."""
    if not folder.is_dir():
        make_private_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)


@contextlib.contextmanager
def hold_temporary(folder: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """Yields the path of a new, locked temporary file or folder in `folder`, which is made if needed.

    It is removed after the block, unless it was moved. If this process dies, another process removes it later. Raises
    OSError.
    """
    make_private_folder(folder)
    made = HeldFile.create(_temporary_path(folder), folder=is_folder)
    try:
        yield made.path
    finally:
        with contextlib.suppress(OSError):  # the next opening of the store removes it
            made.remove()
        made.close()


def remove_leftover_temporaries(folder: Path) -> None:
    """Remove from a folder the temporary files whose processes have ended."""
    for path in folder.glob(_TEMPORARY_GLOB):
        if _is_abandoned(path):
            with contextlib.suppress(OSError):
                remove_abandoned(path)


def _temporary_path(folder: Path, digest: str = "") -> Path:
    """A new path for a temporary file; with `digest`, one that reserves this digest: see `claim_digest`."""
    return folder / f".mta-{os.urandom(8).hex()}{'-' + digest if digest else ''}.tmp"


def _is_abandoned(path: Path) -> bool:
    return _TEMPORARY_NAME_PATTERN.fullmatch(path.name) is not None and not is_held(path)


def _claimed_digest(path: Path) -> str | None:
    found = _TEMPORARY_NAME_PATTERN.fullmatch(path.name)
    return found[1] if found is not None and _DIGEST_PATTERN.fullmatch(found[1] or "") else None


def _write_durably(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_BINARY", 0))
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Wait until the system has written a file's content to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the system has written a folder's list of files to the disk. Raises OSError."""
    if sys.platform == "win32":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove a file if it exists. Raises BadInput or IntegrityFault if it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_fault(path, error, "removed") from error


def _make_temporary(path: Path) -> HeldFile:
    """Rename a file to the path of a temporary file, and lock it.

    Raises FileNotFoundError if it is gone, else the error that `disk_fault` returns.
    """
    try:
        held = HeldFile(path)
        held.move(_temporary_path(path.parent))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise disk_fault(path, error) from error
    return held


def disk_fault(path: Path, error: OSError, done: str = "written") -> MtaError:
    """The error for a failed file operation: BadInput if the user can fix the cause, else IntegrityFault."""
    reason = error.strerror or type(error).__name__
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, then run the command again"
        return BadInput(f"The disk is full: {path} was not {done} ({reason}).", hint=hint)
    if error.errno == errno.EROFS:
        return BadInput(
            f"{path} cannot be {done}: {reason}.",
            hint="the file system is read-only: make it writable, or choose another directory",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
        return BadInput(f"{path} cannot be {done}: {reason}.", hint="check the permissions of this path and its folder")
    if error.errno in (errno.EISDIR, errno.ENAMETOOLONG):
        return BadInput(f"{path} cannot be {done}: {reason}.", hint="choose another name")
    return IntegrityFault(f"{path} could not be {done}: {reason}.", hint="check the disk")


def sha256(data: bytes) -> str:
    """The content's digest, 64 hexadecimal digits."""
    import hashlib  # imported late because it loads OpenSSL, which commands that only list something do not need

    return hashlib.sha256(data).hexdigest()


class AdapterFiles:
    """The adapter files and training checkpoints in a store's directory.

    `require_not_moved` is called before each change and raises if the store's directory was moved or replaced.
    """

    def __init__(self, root: Path, require_not_moved: Callable[[], None] = lambda: None) -> None:
        self._require_not_moved = require_not_moved
        self.adapter_folder = root / "adapters"
        self.checkpoint_folder = root / "partial"
        self._claims: dict[str, HeldFile] = {}

    def path(self, digest: str) -> Path:
        """The path of the adapter file with this digest. Raises IntegrityFault for an invalid digest."""
        if not _DIGEST_PATTERN.fullmatch(digest):
            raise IntegrityFault(f"{digest[:80]!r} is not the digest of a file.")
        return self.adapter_folder / digest[:2] / f"{digest}{_SUFFIX}"

    def write(self, data: bytes) -> tuple[str, int]:
        """Store `data` as an adapter file unless it exists; returns its digest and size in bytes.

        Raises the errors of `atomic_write`.
        """
        self._require_not_moved()
        digest = sha256(data)
        path = self.path(digest)
        if not self._has_content(path, digest):
            atomic_write(path, data)
        return digest, len(data)

    def claim_digest(self, digest: str) -> None:
        """Reserve a digest before its file is written, so that no other process removes the file before its row is
        stored.

        The reservation is a locked file: it ends with `release_claim` or with this process. Raises the errors of
        `atomic_write`.
        """
        self._require_not_moved()
        folder = self.path(digest).parent
        try:
            make_private_folder(folder)
            if digest not in self._claims:
                self._claims[digest] = HeldFile.create(_temporary_path(folder, digest))
        except OSError as error:
            raise disk_fault(folder, error) from error

    def release_claim(self, digest: str) -> None:
        """End this process's reservation of a digest."""
        with contextlib.suppress(OSError, KeyError):  # a leftover reservation does no harm: the row protects the file
            self._claims.pop(digest).remove()

    def verify(self, digest: str) -> None:
        """Raises IntegrityFault, with the digest and a remedy, if the file is missing or does not match its digest."""
        self.read(digest)

    def read(self, digest: str) -> bytes:
        """The adapter file's content. Raises IntegrityFault if it is missing or does not match its digest."""
        path = self.path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise IntegrityFault(f"The file of adapter {digest} is gone: {path}.", hint=_RESTORE_HINT) from error
        except OSError as error:
            raise IntegrityFault(
                f"The file of adapter {digest} cannot be read: {error.strerror}.", hint=_RESTORE_HINT
            ) from error
        found = sha256(data)
        if found != digest:
            raise IntegrityFault(
                f"The file of adapter {digest} is damaged: its content has digest {found}.", hint=_RESTORE_HINT
            )
        return data

    def has_intact_file(self, digest: str) -> bool:
        """Whether the adapter file exists and matches its digest."""
        return self._has_content(self.path(digest), digest)

    def delete(self, digest: str) -> None:
        """Remove the adapter file if it exists."""
        self._require_not_moved()
        remove_file(self.path(digest))

    def find_orphans(self, known: set[str]) -> list[Path]:
        """Paths of adapter files whose digest is neither in `known` nor reserved by a process, sorted."""
        spared = known | {_claimed_digest(path) for path in self._temporary_paths()}
        paths = {path.name.removesuffix(_SUFFIX): path for path in self.adapter_folder.glob(f"??/*{_SUFFIX}")}
        return sorted(path for digest, path in paths.items() if digest not in spared)

    def stored_digests(self) -> set[str]:
        """The digests of all adapter files in the store."""
        names = (path.name.removesuffix(_SUFFIX) for path in self.adapter_folder.glob(f"??/*{_SUFFIX}"))
        return {name for name in names if _DIGEST_PATTERN.fullmatch(name)}

    def remove_old_orphans(self, known: set[str]) -> None:
        """Remove files without a row, except recent ones: another process may be about to store their rows."""
        self._require_not_moved()
        for path in self.find_orphans(known):
            if _modified_time(path) < time.time() - MIN_ORPHAN_AGE_SECONDS:
                remove_file(path)

    def find_abandoned_temporaries(self) -> list[Path]:
        """Paths of temporary files whose processes have ended."""
        return [path for path in self._temporary_paths() if _is_abandoned(path)]

    def remove_abandoned_temporaries(self) -> list[tuple[str, Path]]:
        """Remove the temporary files of ended processes, except reservations of digests.

        Returns the reservations of ended processes: digests with the paths of their files.
        """
        claims = []
        for path in self.find_abandoned_temporaries():
            digest = _claimed_digest(path)
            if digest is not None:
                claims.append((digest, path))
                continue
            with contextlib.suppress(OSError):
                remove_abandoned(path)
        return claims

    def write_checkpoint(self, key: str, data: bytes) -> None:
        """Store a checkpoint under `key`, in place of the earlier one. Raises the errors of `atomic_write`."""
        self._require_not_moved()
        path = self.checkpoint_folder / f"{sha256(key.encode())}.{sha256(data)}{_SUFFIX}"
        atomic_write(path, data)
        for older in self._checkpoint_paths(key):
            if older != path:
                remove_file(older)

    def read_checkpoint(self, key: str) -> bytes | None:
        """The newest undamaged checkpoint of `key`; None if there is none. Damaged ones are removed."""
        for path in sorted(self._checkpoint_paths(key), key=_modified_time, reverse=True):
            with contextlib.suppress(OSError):
                data = path.read_bytes()
                if path.name.split(".")[1] == sha256(data):
                    return data
                path.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def consume_checkpoint(self, key: str) -> Iterator[None]:
        """Remove the checkpoint of `key` after the block, also if the process dies in it; after an error it is
        restored.

        After an IntegrityFault it is removed too, because the data that it was made from may have been removed.
        """
        self._require_not_moved()
        aside: list[tuple[Path, HeldFile]] = []
        try:
            for path in self._checkpoint_paths(key):
                with contextlib.suppress(FileNotFoundError):  # removing a user removes every checkpoint
                    aside.append((path, _make_temporary(path)))
            yield
        except BaseException as error:
            for path, held in aside:
                with contextlib.suppress(OSError):
                    held.remove() if isinstance(error, IntegrityFault) else held.path.replace(path)
                held.close()  # so that this process can resume from the checkpoint again
            raise
        for _, held in aside:
            with contextlib.suppress(OSError):
                held.remove()
            held.close()

    def remove_checkpoint(self, key: str) -> None:
        """Remove the checkpoint of `key` if there is one."""
        self._require_not_moved()
        for path in self._checkpoint_paths(key):
            remove_file(path)

    def remove_all_checkpoints(self) -> None:
        """Remove every checkpoint. Trainings that are running will write new ones."""
        self._require_not_moved()
        for path in self.checkpoint_folder.glob(f"*{_SUFFIX}"):
            remove_file(path)

    def _has_content(self, path: Path, digest: str) -> bool:
        try:
            return sha256(path.read_bytes()) == digest
        except OSError:
            return False

    def _checkpoint_paths(self, key: str) -> list[Path]:
        return list(self.checkpoint_folder.glob(f"{sha256(key.encode())}.*{_SUFFIX}"))

    def _temporary_paths(self) -> Iterator[Path]:
        for folder in (".", "adapters", "adapters/??", "partial"):
            yield from self.adapter_folder.parent.glob(f"{folder}/{_TEMPORARY_GLOB}")


def _modified_time(path: Path) -> float:
    """When the file was last written, in seconds since the epoch; infinity if it no longer exists."""
    try:
        return path.stat().st_mtime
    except OSError:
        return math.inf
