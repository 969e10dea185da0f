"""The job behind `mta doctor --repair`: rebuilds the full-text index, removes leftovers and damaged downloads.

It asks before any change, and never changes rows of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mta_cli.errors import BadInput, IntegrityFault
from mta_cli.events import ArtifactSaved, Event, JobResult, Note
from store.files import remove_file
from store.integrity.repair import Repair

ConfirmRepairs = Callable[[Sequence[Repair]], None]
"""Asks the user about these repairs; returns if the user agrees, otherwise raises."""


def repair(store: Path, timeout: float, agree: ConfirmRepairs) -> Iterator[Event]:
    """Repair the store and the models. `JobResult.result` is `{repairs: [{what, action, again}]}`.

    `again` says how to get removed files back. Each repair is atomic. `agree` is asked before the store is repaired,
    and again before models are removed; its error is raised. Raises IntegrityFault for an unreadable database.
    """
    from store.registry import Registry

    done: list[Repair] = []
    if (store / "registry.db").exists():
        with Registry.open(store, timeout=timeout) as reg:
            yield from _apply_repairs(reg.repairs(), agree, done)
    models, notes = _find_model_repairs()
    yield from notes
    yield from _apply_repairs(models, agree, done)
    if not done:
        yield Note("There is nothing to repair.")
    yield JobResult({"repairs": [{"what": each.what, "action": each.action, "again": each.again} for each in done]})


def _apply_repairs(found: Sequence[Repair], require_agreement: ConfirmRepairs, done: list[Repair]) -> Iterator[Event]:
    if found:
        require_agreement(found)
    for each in found:
        each.apply()
        done.append(each)
        yield ArtifactSaved("repair", each.what, f"{each.action}; {each.again}")


def _find_model_repairs() -> tuple[list[Repair], list[Note]]:
    """Repairs for damaged pulled models; notes on damaged registered folders, which belong to the user, and on
    unreadable models.
    """
    from mta_cli.pipeline.models.bases import can_be_pulled
    from mta_cli.pipeline.models.installed import list_models, model_faults, removal_preview, uninstall_model
    from mta_cli.pipeline.models.manifest import MANIFEST

    found, notes = [], []
    for entry in list_models():
        try:
            faults = [entry.detail["fault"]] if "fault" in entry.detail else model_faults(entry)
        except BadInput as error:  # unreadable, so its content is unknown
            notes.append(Note(f"The model {entry.name} was not checked: {error}", warning=True))
            continue
        if not faults:
            continue
        if removal_preview(entry.name)["folder"] is not None:
            text = (
                f"The model {entry.name} cannot be repaired, because its folder {entry.path} was registered, not "
                f"downloaded. Restore the folder's files: {faults[0]}"
            )
            notes.append(Note(text, warning=True))
            continue
        if not can_be_pulled(entry.name) and _has_damaged_manifest(entry.path):
            found.append(
                Repair(
                    f"the manifest in {entry.path} is damaged",
                    "it is removed; other files are kept",
                    "mta model pull with the model's name or folder",
                    partial(remove_file, entry.path / MANIFEST),
                )
            )
            continue
        again = f"mta model pull {entry.name}"
        found.append(
            Repair(
                f"the model {entry.name} is damaged: {faults[0]}",
                "it is removed",
                again,
                partial(uninstall_model, entry.name),
            )
        )
    return found, notes


def _has_damaged_manifest(folder: Path) -> bool:
    from mta_cli.pipeline.models.manifest import read_manifest

    try:
        read_manifest(folder)
    except IntegrityFault:
        return True
    return False
