"""The models directory: the folder of each model and the manifest that describes the model.

A pulled model is `<slug>/` with its files and `mta-model.json`; a registered folder is `<slug>/mta-model.json` with the
folder's path alone. This module uses neither the network nor the registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mta_cli.engine.model import checkpoint_files as folders
from mta_cli.errors import BadInput, Command, Flag, IntegrityFault, MtaError, system_reason
from store.files import atomic_write, remove_leftover_temporaries

MANIFEST = "mta-model.json"
FILE_MODE, FOLDER_MODE = 0o644, 0o755


@dataclass(frozen=True)
class ModelEntry:
    """An installed model. `kind` is base or embedder; `detail` is the manifest's other facts."""

    name: str
    kind: str
    path: Path
    fingerprint: str
    detail: dict[str, Any] = field(default_factory=dict)


def models_dir() -> Path:
    """`MTA_MODELS`, else a folder in the user's cache directory; it may be missing. Raises BadInput for a bad path."""
    if given := os.environ.get("MTA_MODELS"):
        try:
            path = Path(given).expanduser()
            path.exists()
        except (OSError, RuntimeError) as error:  # the path is too long or not readable, or `~` has no home directory
            raise BadInput(
                f"MTA_MODELS cannot be used: {given!r:.200} ({system_reason(error)})",
                hint="set MTA_MODELS to another directory",
            ) from error
        return path
    from platformdirs import user_cache_path

    return user_cache_path("mta") / "models"


def slug(name: str) -> str:
    """A file name for a model's name: only letters, digits, dots, dashes and underscores, without a leading dot."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "--", name).lstrip(".") or "--"
    return plain if len(plain) <= 160 else f"{plain[:120]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def existing_path(name: str) -> Path | None:
    """The absolute path of an existing file or folder `name`; None when there is none."""
    try:
        path = Path(name).expanduser()
        return path.resolve() if name and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # the path is too long or has a NUL, or `~` has no home directory
        return None


def model_dir(name: str) -> Path:
    """The folder of the model with this name, which may be missing."""
    return models_dir() / slug(name)


def read_manifest(place: Path) -> dict[str, Any] | None:
    """The manifest in `place`; None when there is none. Raises IntegrityFault when it cannot be read."""
    try:
        found = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise IntegrityFault(
            f"{place / MANIFEST} cannot be read ({type(error).__name__})", hint=f"remove {place} and pull again"
        ) from error
    if not isinstance(found, dict) or not _is_complete_manifest(found):
        raise IntegrityFault(f"{place / MANIFEST} is not a model's manifest", hint=f"remove {place} and pull again")
    return found


def _is_complete_manifest(manifest: dict[str, Any]) -> bool:
    """Whether the manifest has all required keys; a registered folder needs only its path."""
    if isinstance(manifest.get("folder"), str):
        return isinstance(manifest.get("name"), str)
    kinds = {"name": str, "kind": str, "fingerprint": str, "files": dict, "bytes": int}
    return all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())


def write_manifest(place: Path, manifest: dict[str, Any]) -> None:
    """Writes `mta-model.json` into `place` atomically. Raises BadInput or IntegrityFault if the disk refuses it."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_leftover_temporaries(place)
        atomic_write(place / MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
        (place / MANIFEST).chmod(FILE_MODE)
    except OSError as error:
        raise BadInput(
            f"{place} cannot be written: {system_reason(error)}", hint="set MTA_MODELS to another directory"
        ) from error


def make_manifest(path: Path, *, name: str, source: str, revision: str = "", licence: str = "") -> dict[str, Any]:
    """The manifest of the model in `path`. Reads all its files. Raises the errors of `check_folder`."""
    folders.check_folder(path, thorough=True)
    files = [file for file in folders.model_files(path) if file.name != MANIFEST]
    digests = {file.as_posix(): folders.sha256_file(path / file) for file in files}
    return {
        "name": name,
        "kind": "embedder" if (path / "modules.json").exists() else "base",
        "source": source,
        "revision": revision,
        "licence": licence,
        "fingerprint": folders.fingerprint(path, digests),
        "parameters": folders.parameter_count(path),
        "dtype": ",".join(folders.weight_dtypes(path)),
        "bytes": sum((path / file).stat().st_size for file in files),
        "files": digests,
    }


def folder_manifest(path: Path, name: str, *, accept_changes: bool = False) -> dict[str, Any]:
    """The manifest of a user's own folder, cached until a file's size or time changes.

    Raises IntegrityFault if the content of a cached file has changed, unless `accept_changes`.
    """
    path = path.expanduser().resolve()
    folders.require_folder(path)
    signature = _signature(path)
    cache = models_dir() / ".folders" / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
    known: dict[str, Any] | None = None
    with suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(cache.read_text(encoding="utf-8"))
        known = dict(cached["manifest"])
        if cached["signature"] == signature:
            return {**known, "name": name}
    # only known files are compared, so new files are allowed
    for file, before, now in changed_files(path, known["files"] if known is not None and not accept_changes else {}):
        raise IntegrityFault(
            f"{path / file} has changed since the folder was registered: sha256 {before} then, {now} now",
            hint=("restore the file, or register the folder as it is now: ", Command("model pull", str(path))),
        )
    manifest = make_manifest(path, name=name, source=f"folder:{path}")
    with suppress(OSError, MtaError):  # without the cache, the next call reads all files again
        cache.parent.mkdir(parents=True, exist_ok=True)
        remove_leftover_temporaries(cache.parent)
        atomic_write(cache, json.dumps({"signature": signature, "manifest": manifest}).encode())
    return manifest


def changed_files(folder: Path, digests: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each file whose SHA-256 is not that in `digests`: its name, the expected digest, and its own or `no file`."""
    for file, expected in digests.items():
        found = folders.sha256_file(folder / file) if (folder / file).is_file() else "no file"
        if found != expected:
            yield file, expected, found


def entry_from_manifest(path: Path, manifest: dict[str, Any]) -> ModelEntry:
    """The entry for a manifest, whose files are in the folder `path`."""
    known = {"name", "kind", "fingerprint"}
    detail = {key: value for key, value in manifest.items() if key not in known}
    return ModelEntry(manifest["name"], manifest["kind"], path, manifest["fingerprint"], detail)


def check_model_name(name: str) -> str:
    """Returns `name` if a local folder can be registered under it. Raises BadInput otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise BadInput(
            f"{name[:120]!r} cannot be a model's name",
            hint=(
                "choose one of letters, digits, dots, dashes and underscores, 100 at most: ",
                Flag("name", "NAME"),
            ),
        )
    return name


def _signature(path: Path) -> list[list[Any]]:
    stats = ((file.as_posix(), (path / file).stat()) for file in folders.model_files(path))
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
