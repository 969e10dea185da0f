"""The jobs behind `mta backup` and `mta restore`: they plan, ask for confirmation and report the store's work."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mta_cli import __version__
from mta_cli.errors import BadInput, Command
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobResult, JobStarted, Note, PlanLine

if TYPE_CHECKING:
    from store.backup import Manifest
    from store.registry import Registry
    from store.restore import ReplacedStore

Result = TypeVar("Result")
ConfirmReplace = Callable[[str], None]
"""Asks the user a question; returns if the user agrees, otherwise raises."""


def write_backup(reg: Registry, to: Path, agree: ConfirmReplace) -> Iterator[Event]:
    """Write the store to one archive. `JobResult` is `{file, bytes, schema, users, adapters}`.

    Raises BadInput for a place inside the store or one that cannot be written, IntegrityFault for a damaged adapter
    file, and the error of `agree` if the user does not agree to replace an existing file.
    """
    from store.backup import create_backup

    target = Path(os.path.abspath(to.expanduser()))
    root = reg.root.resolve()
    if target.is_dir():
        raise BadInput(f"{target} is a folder; a backup is a file.", hint=Command("backup", "FILE"))
    if root == target.parent.resolve() or root in target.parent.resolve().parents:
        raise BadInput(f"{target} is inside the store.", hint="choose a file elsewhere, best on another disk")
    if target.exists():
        agree(f"Replace {target}?")
    yield JobStarted("backup", len(reg.adapters.all()) + 1, "files")
    manifest = yield from yield_file_progress(create_backup(reg, target, __version__))
    yield ArtifactSaved("backup", str(target), "it contains all users' data: keep it where others cannot read it")
    yield JobResult(
        {
            "file": str(target),
            "bytes": target.stat().st_size,
            "schema": manifest.schema,
            "users": manifest.users,
            "adapters": manifest.adapters,
        }
    )


def restore(root: Path, archive: Path, timeout: float, agree: ConfirmReplace, *, dry_run: bool) -> Iterator[Event]:
    """Replace the store `root` by a backup, after verifying the whole backup.

    `JobResult` is `{store, file, created, schema, users, adapters, replaced, forgotten, withdrawn, not_replayed}`:
    `replaced` says whether a readable store was replaced. `forgotten` counts the backup's users who had been removed
    since and are removed again, `withdrawn` the consents withdrawn since and again. `not_replayed` says why the users
    removed since are unknown; None if they are known. Users who are not in the backup are first removed from the
    server's keys, so that a later user of the same name needs a new key. Raises NotFound, BadInput and IntegrityFault
    for the archive, IntegrityFault for a store of a newer mta, StoreBusy while another process has the store open, and
    the error of `agree` if the user does not agree to replace the store.
    """
    from mta_cli.pipeline.users.serve_keys import FILE_NAME, drop_from_keys
    from store.restore import read_replaced_store, stage_restore

    with stage_restore(root, timeout) as staged:
        there = read_replaced_store(root)
        yield JobStarted("verify", None, "files")
        manifest = yield from yield_file_progress(staged.unpack(archive))
        yield JobPlan("restore", tuple(_plan_lines(root, archive, manifest, there)))
        if dry_run:
            yield JobResult({"store": str(root), "file": str(archive), "dry_run": True})
            return
        if (root / "registry.db").exists():
            agree(f"Replace the store at {root} ({_user_count(there)}) by the backup of {manifest.created}?")
        done = staged.install(partial(drop_from_keys, root))
    if done.replaced.problem:
        yield Note(
            f"Users who were removed after {manifest.created} are unknown, because {done.replaced.problem}. They are "
            "back in the store; remove them again with mta user rm.",
            warning=True,
        )
    if done.forgotten:
        yield Note(f"users removed after the backup, and now removed again: {done.forgotten:,}")
    if done.withdrawn:
        yield Note(f"users who withdrew consent after the backup; it is now withdrawn again: {done.withdrawn:,}")
    if done.replaced.users is None and not (root / FILE_NAME).exists():
        yield Note("a backup contains no server keys: until you add one, mta serve answers everyone on this machine")
    yield ArtifactSaved("store", str(root), f"{done.users:,} users, {done.adapters:,} adapters")
    yield JobResult(
        {
            "store": str(root),
            "file": str(archive),
            "created": manifest.created,
            "schema": manifest.schema,
            "users": done.users,
            "adapters": done.adapters,
            "replaced": done.replaced.users is not None,
            "forgotten": done.forgotten,
            "withdrawn": done.withdrawn,
            "not_replayed": done.replaced.problem or None,
        }
    )


def yield_file_progress(names: Generator[str, None, Result]) -> Generator[Event, None, Result]:
    """Yield a progress event for each file name of `names`; returns the generator's result."""
    for done in itertools.count(1):
        try:
            name = next(names)
        except StopIteration as end:
            result: Result = end.value
            break
        yield JobProgress(name.rpartition("/")[2][:12], done)
    return result


def _plan_lines(root: Path, archive: Path, manifest: Manifest, there: ReplacedStore) -> Iterator[PlanLine]:
    yield PlanLine("backup", str(archive))
    yield PlanLine("made", f"{manifest.created} by mta {manifest.program}, schema {manifest.schema}")
    yield PlanLine("users", f"{manifest.users:,}")
    yield PlanLine("adapters", f"{manifest.adapters:,}")
    yield PlanLine("verified", f"{archive.stat().st_size:,} bytes")
    yield PlanLine("store", str(root))
    yield PlanLine("replaced", _user_count(there))
    known = f"{len(there.tombstones):,} in the store's records are removed again, if the backup has them"
    yield PlanLine("removed users", there.problem or known)


def _user_count(there: ReplacedStore) -> str:
    return "no readable store" if there.users is None else f"{there.users:,} users"
