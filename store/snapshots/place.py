"""Reads and writes the files of a snapshot in a folder or in a bucket that fsspec can open (`s3://…`, `gs://…`).

`manifest.json` lists the other files: the database and the adapters, each at `objects/<first two digits>/<sha256>`.
Files are written atomically. While a snapshot is written, `unfinished.json` lists its files.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from mta_cli.errors import BadInput, Command, MtaError, NotFound, UsageError, system_reason
from store.files import disk_fault, make_private_folder, remove_leftover_temporaries, replace_file, sync_file

MANIFEST_NAME, UNFINISHED_NAME = "manifest.json", "unfinished.json"
_CHUNK_BYTES = 2**20
_OBJECT_PATTERN = re.compile(r".*/objects/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class SnapshotPlace:
    """The folder or bucket of a snapshot. `folder` is its path if it is a folder of this machine, else None.

    Raises UsageError for an address that no installed package can open. Every method raises BadInput if the place
    cannot be read or written, and IntegrityFault if its disk fails.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._fs, self._path = _open_file_system(address)
        local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))
        self.folder = Path(os.path.abspath(self._path)) if local else None

    def read_manifest(self, limit: int, name: str = MANIFEST_NAME) -> bytes | None:
        """The content of the file `name`; None if it is missing. Raises BadInput if it has more than `limit` bytes."""
        with self._translated_errors("read"):
            self._fs.invalidate_cache()
            try:
                with self._open(name) as file:
                    content = file.read(limit + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        if len(content) > limit:
            raise BadInput(
                f"{self.address}/{name} has more than {limit:,} bytes, so it is not a snapshot's manifest.",
                hint="check the address of the snapshot",
            )
        return content

    def object_sizes(self) -> dict[str, int]:
        """The size in bytes of every file of the snapshot, by digest."""
        with self._translated_errors("read"):
            self._fs.invalidate_cache()
            found = self._fs.find(f"{self._path}/objects", detail=True)
        return {match[2]: info["size"] for path, info in found.items() if (match := _OBJECT_PATTERN.fullmatch(path))}

    def read_object(self, digest: str) -> Iterator[bytes]:
        """Yields the content of the file with this digest in chunks. Raises NotFound if it is missing."""
        with self._translated_errors("read"):
            try:
                file = self._open(_object_name(digest))
            except FileNotFoundError as error:
                raise NotFound(
                    f"A file of the snapshot is missing: {self.address}/{_object_name(digest)}.",
                    hint=("run this again; if it stays missing, write the snapshot again: ", Command("snapshot", "TO")),
                ) from error
            with file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk

    def write_object(self, digest: str, source: Path) -> None:
        """Write `source` as the file with this digest, replacing an earlier one."""
        self._write(_object_name(digest), source)

    def write_manifest(self, source: Path, name: str = MANIFEST_NAME) -> None:
        """Replace the manifest, or the file `name`, by `source`; readers see either the old or the new one."""
        self._write(name, source)

    def remove_object(self, digest: str) -> None:
        """Remove the file with this digest if it exists."""
        self._remove(_object_name(digest))

    def remove_unfinished(self) -> None:
        """Remove the list of files of an unfinished snapshot."""
        self._remove(UNFINISHED_NAME)

    def _remove(self, name: str) -> None:
        with self._translated_errors("removed"), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._path}/{name}")

    def remove_leftovers(self) -> None:
        """Remove temporary files of writers that were killed. A bucket has none."""
        if self.folder is not None:
            remove_leftover_temporaries(self.folder)

    def _open(self, name: str) -> BinaryIO:
        """Open a file. Raises BadInput for links and special files, because reading a pipe would block forever."""
        path = f"{self._path}/{name}"
        info = self._fs.info(path)
        if info["type"] != "file" or info.get("islink"):
            raise BadInput(
                f"{self.address}/{name} is a link or not a file.",
                hint=("remove it, then write the snapshot again: ", Command("snapshot", "TO")),
            )
        opened: BinaryIO = self._fs.open(path, "rb")
        return opened

    def _write(self, name: str, source: Path) -> None:
        with self._translated_errors("written"):
            if self.folder is None:  # in a bucket, a file appears once it is complete
                self._fs.put_file(str(source), f"{self._path}/{name}")
                return
            target = self.folder / name
            make_private_folder(target.parent)
            with replace_file(target, self.folder) as temporary:
                shutil.copyfile(source, temporary)
                sync_file(temporary)

    @contextmanager
    def _translated_errors(self, done: str) -> Iterator[None]:
        try:
            yield
        except MtaError:
            raise
        except OSError as error:
            if self.folder is not None:
                raise disk_fault(self.folder, error, done) from error
            raise self._unreachable_error(error, done) from error
        except Exception as error:  # each package of fsspec has errors of its own
            raise self._unreachable_error(error, done) from error

    def _unreachable_error(self, error: Exception, done: str) -> BadInput:
        reason = (system_reason(error).splitlines() or [""])[0]
        return BadInput(
            f"{self.address} cannot be {done}: {reason:.200}.",
            hint="check the address of the snapshot, the network and your credentials",
        )


def _object_name(digest: str) -> str:
    return f"objects/{digest[:2]}/{digest}"


def _open_file_system(address: str) -> tuple[Any, str]:
    """The file system that fsspec has for an address, and the path in it. Raises UsageError for a wrong address."""
    import fsspec.core

    protocol = address.partition("://")[0] if "://" in address else ""
    try:
        found, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        raise UsageError(
            f"Addresses with {protocol}:// need a package that is not installed{': ' + package if package else ''}.",
            hint=f"pip install {package}" if package else str(error),
        ) from error
    except Exception as error:  # an unknown protocol, or a package's own complaint
        raise UsageError(
            f"{address[:200]!r} is not the address of a snapshot: {system_reason(error):.200}.",
            hint="give a folder, s3://BUCKET/PATH or gs://BUCKET/PATH",
        ) from error
    return found, str(path).rstrip("/")
