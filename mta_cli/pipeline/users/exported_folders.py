"""Exported folders: written atomically, and recorded as runs, so that removing a user can list them.

Their contents are made by the callers.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.engine.model.checkpoint_files import sha256_file
from mta_cli.errors import BadInput, Flag, system_reason
from mta_cli.pipeline.runs import REQUEST_KEY, record_request
from store.files import hold_temporary, remove_leftover_temporaries, sync_file

if TYPE_CHECKING:
    from store.records import User
    from store.registry import Registry

FileContent = bytes | Callable[[Path], None]
EXPORT_RUN_KIND = "user export"  # the kind of an export's run
# errors of moving a folder into place if it is a mount point, or if its parent cannot be written
_REFUSED_BESIDE = (errno.EACCES, errno.EBUSY, errno.EROFS, errno.EXDEV)


def resolve_export_folder(
    reg: Registry, to: Path, what: str, *, replace: bool = False, list_file: str | None = None
) -> Path:
    """`to` as an absolute path. Raises BadInput for a file, and for a folder that is not empty unless `replace`.

    Raises BadInput for a folder in the store, and with the system's reason for an invalid path. For a folder with an
    earlier export, which has a `list_file`, the hint offers to replace it.
    """
    try:
        target = Path(os.path.abspath(to.expanduser()))
        there = target.exists()
        full = target.is_dir() and any(target.iterdir())
        inside = target.resolve().is_relative_to(reg.root.resolve())
    except (OSError, RuntimeError) as error:  # too long, not readable, or an unknown home
        raise BadInput(
            f"{str(to)!r:.200} cannot be used: {system_reason(error)}",
            hint=("Name another folder with ", Flag("to"), "."),
        ) from error
    if there and not target.is_dir():
        raise BadInput(
            f"{what} cannot be written to {target}, which is a file, not a folder.",
            hint=("Name a folder with ", Flag("to"), "."),
        )
    if inside:
        raise BadInput(f"{target} lies in the store.", hint=("Name a folder outside it with ", Flag("to"), "."))
    if full and not replace:
        ours = list_file is not None and (target / list_file).is_file()
        also = (", or replace the export in it with ", Flag("yes")) if ours else ()
        raise BadInput(f"{target} is not empty.", hint=("Name another folder with ", Flag("to"), *also, "."))
    return target


def write_folder(
    target: Path,
    files: Mapping[str, FileContent],
    what: str,
    *,
    private: bool = False,
    list_file: str | None = None,
    listed: Mapping[str, Sequence[str]] | None = None,
) -> int:
    """Write these files as a folder that is moved into place at once.

    In a folder that is not empty they are replaced one by one, and all other files stay.

    `files` maps relative paths (with `/`) to bytes, or to a function that writes the file. A `private` folder is
    accessible only to its owner. With `list_file`, a file of that name lists the SHA-256 of each file, and of files
    `listed` before; it is replaced first, so that an interrupted replacement can be repeated. Returns the number of
    bytes written. Raises BadInput with the system's reason; a new folder is then not left behind. Temporary
    folders of killed processes are removed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover_temporaries(target.parent)
        with hold_temporary(target.parent, is_folder=True) as held:
            draft = held / "draft"
            draft.mkdir(mode=0o700 if private else 0o777)
            for name, content in files.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    (draft / name).write_bytes(content)
                else:
                    content(draft / name)
                sync_file(draft / name)
            size, names = sum((draft / name).stat().st_size for name in files), list(files)
            if list_file is not None:
                digests = {name: list(known) for name, known in (listed or {}).items()}
                for name in files:
                    digests[name] = sorted({*digests.get(name, ()), sha256_file(draft / name)})
                (draft / list_file).write_text(json.dumps({"files": digests}, indent=2) + "\n", encoding="utf-8")
                names.insert(0, list_file)
            if target.is_dir() and any(target.iterdir()):
                for name in names:
                    (target / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(draft / name, target / name)
            else:
                os.replace(draft, target)
            return size
    except OSError as error:
        beside = target.is_dir() and os.access(target, os.W_OK) and error.errno in _REFUSED_BESIDE
        hint = ("Name a new folder in it with ", Flag("to"), ".") if beside else None
        raise BadInput(f"{what} cannot be written to {target}: {system_reason(error)}", hint=hint) from error


def read_list(path: Path) -> dict[str, list[str]]:
    """The SHA-256 digests of each listed file, from a `list_file` (see `write_folder`)."""
    found: dict[str, list[str]] = json.loads(path.read_bytes())["files"]
    return found


@contextmanager
def record_export(reg: Registry, user: User, target: Path, what: str) -> Iterator[None]:
    """Record an export of a user's data as a run during the block, and hold the user."""
    asked = {"to": str(target), "what": what}
    with reg.hold_users("export", [user.id]), record_request(reg, EXPORT_RUN_KIND, asked, user_id=user.id):
        yield


def exports_of(reg: Registry, user: User) -> list[str]:
    """The distinct folders of a user's exports, newest first; some may have been moved or removed since."""
    exports = [run for run in reg.runs.of_user(user.id) if run.kind == EXPORT_RUN_KIND and run.status != "failed"]
    return list(dict.fromkeys(str(run.config[REQUEST_KEY]["to"]) for run in exports))


def remove_drafts(exports: Sequence[str]) -> None:
    """Remove the temporary folders that killed processes left beside these exports."""
    for folder in {Path(place).parent for place in exports}:
        with suppress(OSError):
            remove_leftover_temporaries(folder)
