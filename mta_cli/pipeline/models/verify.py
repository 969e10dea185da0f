"""Verifies a model's files and the registry in the background while libraries load.

Each model and registry is verified once per process. Adapters are verified whenever they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli.errors import Command, IntegrityFault

if TYPE_CHECKING:
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.registry import Registry

MAX_VERIFIED_REGISTRY_BYTES = 100 * 10**6
"""The largest registry.db that is verified before the first answer, which takes about two seconds."""

_verified_keys: set[tuple[str, str]] = set()  # verified by this process: (path, a model's fingerprint or `registry`)


@contextmanager
def verify_in_background(models: Sequence[ModelEntry] = (), reg: Registry | None = None) -> Iterator[None]:
    """While the block runs, read the models' files and the registry; afterwards raise IntegrityFault if one is damaged.

    If the block itself fails and one is damaged, the IntegrityFault replaces the block's error.
    """
    jobs: dict[tuple[str, str], Callable[[], None]] = {}
    for model in models:
        jobs[str(model.path), model.fingerprint] = partial(_check_model, model)
    if reg is not None and (reg.root / "registry.db").stat().st_size <= MAX_VERIFIED_REGISTRY_BYTES:
        jobs[str(reg.root), "registry"] = partial(_check_registry, reg.root)
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="verify") as pool:
        waiting = {key: pool.submit(job) for key, job in jobs.items() if key not in _verified_keys}
        try:
            yield
        except Exception:
            _await_checks(waiting)
            raise
        _await_checks(waiting)


def _await_checks(waiting: dict[tuple[str, str], Future[None]]) -> None:
    for key, job in waiting.items():
        job.result()
        _verified_keys.add(key)


def _check_model(model: ModelEntry) -> None:
    from mta_cli.pipeline.models.installed import model_faults

    try:
        faults = model_faults(model)
    except OSError as error:
        faults = [f"{error.filename} cannot be read: {error.strerror}"]
    if faults:
        folder = model.detail.get("source", "").startswith("folder:")
        anew = (Command("model rm", model.name), ", then ", Command("model pull", model.name))
        remedy = "copy the folder again" if folder else anew
        raise IntegrityFault(f"The model {model.name} is damaged: {faults[0]}", hint=remedy)


def _check_registry(root: Path) -> None:
    from store.integrity.check import find_structure_faults

    if faults := find_structure_faults(root):
        raise IntegrityFault(
            faults[0],
            hint=(
                "if the full-text index is damaged, run ",
                Command("doctor", repair=True),
                "; otherwise restore a backup with ",
                Command("restore", "FILE"),
            ),
        )
