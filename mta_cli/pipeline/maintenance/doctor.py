"""The job behind `mta doctor`: checks everything that a run depends on, one check after the other.

Each check is a function that returns its finding; an exception counts as a fault. Nothing is changed, except that
temporary files that killed commands left are removed.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mta_cli.errors import MtaError, NotFound, words_to_text
from mta_cli.events import Event, JobProgress, JobResult, JobStarted
from mta_cli.threads import describe_thread_spinning

DISTRIBUTION = "mta-cli"
MIN_FREE_BYTES = 2 * 10**9


Finding = tuple[bool, str]
"""Whether a part is in order, and what was found. A part that is missing but not broken is in order; the text names the
command that adds it.
"""


@dataclass(frozen=True)
class DoctorRequest:
    """The request: the store's directory, the two default models, settings as (key, value, origin), and whether to
    check deeply.

    Without `names`, findings contain no user's name, so that they can be pasted into a report. `settings_fault` says
    why the settings could not be read; then defaults are used. With `ray_address`, the versions on that cluster's nodes
    are checked.
    """

    store: Path
    base: str
    embedder: str
    settings: Sequence[tuple[str, str, str]] = ()
    settings_fault: str | None = None
    timeout: float = 10.0
    deep: bool = False
    names: bool = False
    ray_address: str = ""


def run_checks(what: DoctorRequest) -> Iterator[Event]:
    """Runs every check. `JobResult.result` is `{ok, checks: [{name, ok, detail}]}`."""
    probes: list[tuple[str, Callable[[], Finding]]] = [
        ("mta", _check_program),
        ("python", _check_python),
        ("system", _check_system),
        ("packages", _check_packages),
        ("sqlite", _check_sqlite),
        ("cpu", _check_cpu),
        ("accelerator", _check_accelerator),
        ("disk", lambda: _check_disk(what)),
        ("store", lambda: _check_store(what)),
        ("models", lambda: _check_models(what.deep)),
        ("base", lambda: _check_default_model("base", what.base)),
        ("embedder", lambda: _check_default_model("embedder", what.embedder)),
        ("settings", lambda: _check_settings(what)),
        *([("cluster", lambda: _check_cluster(what.ray_address))] if what.ray_address else []),
    ]
    yield JobStarted("doctor", len(probes), "checks")
    checks = []
    for done, (name, probe) in enumerate(probes, 1):
        ok, detail = _run_check(probe)
        checks.append({"name": name, "ok": ok, "detail": detail})
        yield JobProgress(name, done)
    yield JobResult({"ok": all(check["ok"] for check in checks), "checks": checks})


def _run_check(probe: Callable[[], Finding]) -> Finding:
    try:
        return probe()
    except MtaError as error:
        return False, str(error) + (f" ({words_to_text(error.hint)})" if error.hint else "")
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"


def _check_program() -> Finding:
    from mta_cli import __version__

    return True, f"{__version__} in {Path(__file__).parents[2]}"


def _check_python() -> Finding:
    return True, f"{platform.python_version()} ({platform.python_implementation()}) in {sys.prefix}"


def _check_system() -> Finding:
    return True, f"{platform.system()} {platform.release()} {platform.machine()}"


def _check_packages() -> Finding:
    """Check that the installed versions satisfy the package's requirements."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    found, faults = [], []
    for one in needed:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            faults.append(f"{one.name} is missing")
            continue
        found.append(f"{one.name} {version}")
        if not one.specifier.contains(version, prereleases=True):
            faults.append(f"{one.name} {version} is installed, but mta needs {one.specifier}")
    return not faults, "; ".join([*faults, ", ".join(found)])


def _check_sqlite() -> Finding:
    from store.connection import check_sqlite

    check_sqlite()
    return True, f"{sqlite3.sqlite_version}, FTS5 present"


def _check_cpu() -> Finding:
    import torch

    from mta_cli.engine.model.load import number_format

    automatic = number_format("auto", "cpu")
    threads = f"{torch.get_num_threads()} threads, {automatic} by default{_memory_text()}"
    return True, f"{os.cpu_count()} cores, {threads}; {describe_thread_spinning()}"


def _memory_text() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not available on this system
        return ""
    return f", {total / 2**30:.1f} GiB of memory"


def _check_accelerator() -> Finding:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return True, ", ".join(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)" for card in cards)
    if torch.backends.mps.is_available():
        return True, "Apple GPU (mps)"
    return True, "none; the CPU is used"


def _check_disk(what: DoctorRequest) -> Finding:
    from mta_cli.pipeline.models.manifest import models_dir

    free = {name: _free_disk_bytes(path) for name, path in (("store", what.store), ("models", models_dir()))}
    detail = ", ".join(f"{name} {size / 1e9:.1f} GB free" for name, size in free.items())
    low = [name for name, size in free.items() if size < MIN_FREE_BYTES]
    return not low, detail + (
        f"; too little space for {' and '.join(low)}: {MIN_FREE_BYTES / 1e9:.0f} GB are needed" if low else ""
    )


def _free_disk_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _check_store(what: DoctorRequest) -> Finding:
    from store.registry import Registry

    if not (what.store / "registry.db").exists():
        if any(what.store.glob("adapters/??/*.safetensors")):
            lost = f"{what.store} has adapters, but its registry.db is missing: mta restore FILE restores a backup"
            return False, lost
        return True, f"none at {what.store} yet; mta init makes one"
    with Registry.open(what.store, timeout=what.timeout) as registry:
        faults = registry.check_integrity(names=what.names)
        counts = ", ".join(f"{count} {name}" for name, count in registry.count_rows().items())
    return not faults, "; ".join([*faults, f"{what.store}: {counts}"])


def _check_models(deep: bool) -> Finding:
    from mta_cli.pipeline.models.installed import list_models, verify_model
    from mta_cli.pipeline.models.manifest import models_dir

    faults, names = [], []
    for entry in list_models():
        names.append(f"{entry.name} ({entry.detail.get('fault') or entry.fingerprint[:19]})")
        if "fault" in entry.detail:
            faults.append(entry.detail["fault"])
        elif deep:
            faults.extend(f"{entry.name}: {fault}" for fault in verify_model(entry.name))
    read = ", every file read" if deep else ""
    return not faults, "; ".join([*faults, f"{models_dir()}: {', '.join(names) or 'none'}{read}"])


def _check_default_model(kind: str, name: str) -> Finding:
    """Whether the configured model is here, or can be fetched by its name."""
    from mta_cli.pipeline.models.bases import can_be_pulled
    from mta_cli.pipeline.models.installed import resolve_model

    try:
        entry = resolve_model(name, kind)
    except NotFound as error:
        return can_be_pulled(name), f"{error}; {words_to_text(error.hint or '')}"
    about = f"{entry.detail['parameters']:,} parameters, {entry.detail['dtype']}, {entry.fingerprint}"
    return True, f"{entry.name}: {about}"


def _check_settings(what: DoctorRequest) -> Finding:
    own = [f"{key} = {value} ({origin})" for key, value, origin in what.settings if origin != "default"]
    return what.settings_fault is None, what.settings_fault or "; ".join(own) or "all defaults"


def _check_cluster(address: str) -> Finding:
    """Whether every node has the versions of this process, which byte-equal results require."""
    from mta_cli.pipeline.executors.nodes import node_versions, versions_here

    ours, nodes, faults = versions_here(), node_versions(address), []
    for node, found in nodes.items():
        if isinstance(found, str):
            faults.append(f"{node} cannot run mta: {found}")
        else:
            faults += [
                f"{node} has {name} {found[name]}, not {ours[name]}" for name in ours if found[name] != ours[name]
            ]
    versions = ", ".join(f"{name} {version}" for name, version in ours.items())
    return not faults, "; ".join([*faults, f"{len(nodes)} nodes; here {versions}"])


def summary(result: dict[str, Any]) -> str:
    """A one-line summary: `all is well`, or the names of the failed checks."""
    failed = [check["name"] for check in result["checks"] if not check["ok"]]
    return f"failed checks: {', '.join(failed)}" if failed else "all is well"
