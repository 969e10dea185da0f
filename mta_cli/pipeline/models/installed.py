"""The installed models, by name: listing, resolving, verifying and removing them.

A name is an embedded default (`smollm2-135m-instruct`, `minilm-l6`), a base of the catalog (`qwen3-0.6b`),
`hf:ORG/NAME[@REVISION]`, a registered folder's name, or the path of a folder. Settings provide the defaults.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mta_cli.engine.model.checkpoint_files import model_files
from mta_cli.errors import BadInput, Command, IntegrityFault, MtaError, NotFound, did_you_mean
from mta_cli.pipeline.models.bases import HUB_BASES, can_be_pulled, hub_name, installed_name, near_names
from mta_cli.pipeline.models.catalog import PACKAGES
from mta_cli.pipeline.models.manifest import (
    MANIFEST,
    ModelEntry,
    changed_files,
    entry_from_manifest,
    existing_path,
    folder_manifest,
    model_dir,
    models_dir,
    read_manifest,
)
from mta_cli.pipeline.models.memory import answering_bytes, training_bytes
from mta_cli.pipeline.models.pull import missing_bytes
from store.files import disk_fault
from store.records import ModelRecord

if TYPE_CHECKING:
    from store.registry import Registry


def resolve_model(name_or_path: str, kind: str | None = None) -> ModelEntry:
    """The installed model with this name or path. Raises BadInput if it is not of this `kind`.

    Raises NotFound, with the command that pulls it, if it is not installed, and IntegrityFault if files are missing.
    """
    entry = _find(name_or_path)
    if kind is not None and entry.kind != kind:
        raise BadInput(
            f"{name_or_path} is {_with_article(entry.kind)}, not {_with_article(kind)}",
            hint=(Command("model list"), " shows the kind of each model"),
        )
    return entry


def resolve_setting(setting: str, name_or_path: str) -> ModelEntry:
    """The model that the setting `models.base` or `models.embedder` names.

    Raises the errors of `resolve_model`, with the setting's name added to the message.
    """
    try:
        return resolve_model(name_or_path, setting.partition(".")[2])
    except (NotFound, BadInput) as error:
        error.message = (error.message, f" ({setting})")
        raise


def check_model_setting(setting: str, name_or_path: str) -> None:
    """Raises the errors of `resolve_setting`, but accepts a model that is not installed and can be pulled."""
    try:
        resolve_setting(setting, name_or_path)
    except NotFound:
        if not can_be_pulled(name_or_path):
            raise


def list_models() -> list[ModelEntry]:
    """Every model in the models directory; if one is damaged, its `detail["fault"]` has the reason."""
    return [_entry_or_fault(place, manifest) for place, manifest in _read_manifests()]


def model_names() -> list[str]:
    """The sorted names of installed models, embedded models and bases of the catalog."""
    here = [str(manifest["name"]) for _, manifest in _read_manifests()]
    return sorted({*here, *PACKAGES, *HUB_BASES})


def available_bases() -> list[dict[str, Any]]:
    """The bases of the catalog as rows, with computed sizes; `pulled` tells whether a base is on this machine."""
    here = {str(manifest["name"]) for _, manifest in _read_manifests()}
    rows = []
    for name, base in HUB_BASES.items():
        package = PACKAGES.get(name)
        row = {
            "name": name,
            "source": package.requirement if package else base.hub_name,
            "family": base.family,
            "licence": base.licence,
            "parameters": base.parameters,
            "download_bytes": package.wheel_bytes if package else base.download_bytes,
            "train_bytes": training_bytes(base.shape, "bfloat16"),
            "train_nf4_bytes": training_bytes(base.shape, "nf4+bfloat16"),
            "serve_bytes": answering_bytes(base.shape, "bfloat16") if base.fast else None,
            "fast": base.fast,
            "gated": base.gated,
            "pulled": installed_name(name) in here,
        }
        rows.append(row)
    return rows


def removal_preview(name: str) -> dict[str, Any]:
    """What `uninstall_model` would remove: `{name, bytes, folder}`. Raises NotFound for an unknown model.

    `folder` is the registered folder, which stays; None for a pulled model.
    """
    full = installed_name(name)
    place = model_dir(full)
    try:
        manifest = read_manifest(place)
    except IntegrityFault:  # a damaged model must be removable too
        manifest = {"name": full}
    if manifest is None or manifest["name"] != full:
        raise _unknown_model_error(name)
    folder = manifest.get("folder")
    files = [Path(MANIFEST)] if folder is not None else model_files(place)
    return {"name": full, "bytes": sum((place / file).stat().st_size for file in files), "folder": folder}


def uninstall_model(name: str) -> dict[str, Any]:
    """Removes a model and returns its `removal_preview`. Of a registered folder only the name is removed."""
    gone = removal_preview(name)
    place = model_dir(gone["name"])
    try:
        if gone["folder"] is not None:
            (place / MANIFEST).unlink()
            with suppress(OSError):  # not empty if the registered folder itself is in the models directory
                place.rmdir()
            return gone
        for path in place.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != MANIFEST:
                path.unlink()
        # The manifest goes last: after a killed removal, the rest can still be removed or pulled again.
        shutil.rmtree(place.resolve())
        if place.is_symlink():  # the folder was moved and left a link
            place.unlink()
    except OSError as error:
        raise disk_fault(place, error, "removed") from error
    return gone


def verify_model(name_or_path: str) -> list[str]:
    """The `model_faults` of the model with this name or path. Raises NotFound if it is not installed."""
    return model_faults(_find(name_or_path))


def model_faults(entry: ModelEntry) -> list[str]:
    """Compare all files of a model with its manifest's digests; returns a text for each file that differs."""
    changed = changed_files(entry.path, entry.detail["files"])
    return [f"{file}: expected sha256 {expected}, found {found}" for file, expected, found in changed]


def record_models(reg: Registry, *entries: ModelEntry) -> None:
    """Record in the store the name, kind and origin of models, by fingerprint."""
    for entry in entries:
        kept = ("source", "revision", "licence", "parameters", "dtype", "bytes")
        detail = {key: entry.detail[key] for key in kept if key in entry.detail}
        reg.models.save_model(ModelRecord(entry.fingerprint, entry.name, entry.kind, detail))


def _find(name: str) -> ModelEntry:
    place = model_dir(installed_name(name))
    manifest = read_manifest(place)
    if manifest is not None and manifest["name"] == installed_name(name):
        return _installed_entry(place, manifest)
    path = None if can_be_pulled(name) else existing_path(name)
    if path is not None and path.is_dir():
        return entry_from_manifest(path, folder_manifest(path, str(path)))
    raise _unknown_model_error(name)


def _installed_entry(place: Path, manifest: dict[str, Any]) -> ModelEntry:
    name = manifest["name"]
    if "folder" in manifest:
        path = Path(manifest["folder"])
        if not path.is_dir():
            raise NotFound(
                f"The folder of {name} is gone: {path}",
                hint=("put it back, or forget the model with ", Command("model rm", name)),
            )
        return entry_from_manifest(path, folder_manifest(path, name))
    if missing_bytes(place, manifest):
        raise IntegrityFault(f"Files of {name} are missing in {place}", hint=Command("model pull", name))
    return entry_from_manifest(place, manifest)


def _entry_or_fault(place: Path, manifest: dict[str, Any]) -> ModelEntry:
    try:
        return _installed_entry(place, manifest)
    except MtaError as error:
        path = Path(manifest.get("folder", place))
        return ModelEntry(
            manifest["name"], manifest.get("kind", "?"), path, manifest.get("fingerprint", ""), {"fault": str(error)}
        )


def _read_manifests() -> list[tuple[Path, dict[str, Any]]]:
    root, found = models_dir(), []
    places = sorted(root.iterdir()) if root.is_dir() else []
    for place in places:
        if place.name.startswith(".") or not (place / MANIFEST).exists():
            continue
        try:
            manifest = read_manifest(place)
        except IntegrityFault:
            manifest = {"name": place.name, "files": {"damaged manifest": ""}, "bytes": 1}
        if manifest:
            found.append((place, manifest))
    return found


def _unknown_model_error(name: str) -> NotFound:
    if can_be_pulled(name):
        return NotFound(f"{name} is not on this machine yet", hint=Command("model pull", name))
    if os.sep in name or name.startswith((".", "~")):
        near = [hub] if (hub := hub_name(name)) is not None else []
        return NotFound(
            f"There is no model folder at {name[:200]!r}",
            hint=did_you_mean(near, (Command("model list"), " shows all")),
        )
    near = near_names(name, model_names())
    return NotFound(f"There is no model {name[:200]!r}", hint=did_you_mean(near, (Command("model list"), " shows all")))


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
