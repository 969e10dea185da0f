"""The jobs behind `mta snapshot` and `mta pull`: they plan and report the store's work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mta_cli import __version__
from mta_cli.errors import BadInput, Command, Flag, UsageError
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobResult, JobStarted, Note, PlanLine
from mta_cli.pipeline.maintenance.backup import yield_file_progress

if TYPE_CHECKING:
    from store.registry import Registry
    from store.snapshots.manifest import SnapshotManifest
    from store.snapshots.place import SnapshotPlace
    from store.snapshots.publish import StagedSnapshot
    from store.snapshots.pull import Pull
    from store.snapshots.serving_copy import ServingChoice


def publish_snapshot(
    reg: Registry, to: str, tasks: Sequence[str], key_file: Path | None, *, hash_names: bool, dry_run: bool
) -> Iterator[Event]:
    """Write the serving part of the store to a folder or bucket, for `tasks` or all tasks.

    `JobResult` is `{to, created, schema, tasks, users, banks, adapters, bytes, hashed_names, written, written_bytes,
    removed, signed}`; `written` and `removed` count files. Raises UsageError for `hash_names` without a key and for an
    address that cannot be reached, NotFound for an unknown task or a missing key, BadInput for a place inside the store
    or one that cannot be written, IntegrityFault for a damaged adapter file.
    """
    from store.snapshots.manifest import read_key
    from store.snapshots.place import SnapshotPlace
    from store.snapshots.publish import stage_snapshot

    if hash_names and key_file is None:
        raise UsageError((Flag("hash_names"), " needs a key to hash names with."), hint=("add ", Flag("key", "FILE")))
    key = None if key_file is None else read_key(key_file)
    place = SnapshotPlace(to)
    _require_outside(reg.root, place)
    choice = _serving_choice(reg, tasks, key if hash_names else None)
    with (
        reg.job_lock(f"snapshot to {to}"),
        stage_snapshot(reg, place, choice, __version__, hashed_names=hash_names) as staged,
    ):
        yield JobPlan("snapshot", tuple(_publish_plan(to, staged, is_signed=key is not None)))
        if dry_run:
            yield JobResult({"to": to, "dry_run": True})
            return
        yield JobStarted("snapshot", len(staged.new), "files")
        yield from yield_file_progress(staged.publish(key))
    if key is None:
        yield Note("The snapshot is not signed: --key FILE signs it.", warning=True)
    manifest = staged.manifest
    yield ArtifactSaved("snapshot", to, "it contains users' models: keep it where others cannot read it")
    yield JobResult(
        {
            "to": to,
            **_contents(manifest),
            "written": len(staged.new),
            "written_bytes": staged.new_bytes,
            "removed": len(staged.old),
            "signed": key is not None,
        }
    )


def pull_snapshot(
    root: Path, source: str, key_file: Path | None, timeout: float, *, dry_run: bool, trust_unsigned: bool = False
) -> Iterator[Event]:
    """Make the store `root` a copy of a snapshot, or update it.

    `JobResult` is `{store, from, created, schema, tasks, users, banks, adapters, bytes, hashed_names, fetched,
    fetched_bytes, removed, signature}`; `signature` is `verified`, `not verified` or `none`. Raises NotFound if
    `source` has no snapshot, UsageError for an address that cannot be reached, BadInput for a store that is not a copy
    of a snapshot, IntegrityFault for a wrong signature or file, StoreBusy during another pull. If the copy was verified
    with a key, a snapshot that is not verified with the same key is refused, unless `trust_unsigned`. Users who are no
    longer in the snapshot are removed from the copy's server keys first, so that an interrupted pull can be repeated.
    """
    from mta_cli.pipeline.users.serve_keys import drop_from_keys
    from mta_cli.pipeline.users.servers import recheck_servers
    from store.snapshots.manifest import read_key
    from store.snapshots.place import SnapshotPlace
    from store.snapshots.pull import Pull

    key = None if key_file is None else read_key(key_file)
    pull = Pull.begin(root, SnapshotPlace(source), key, timeout, trust_unsigned=trust_unsigned)
    signature = "verified" if pull.found.is_verified else "not verified" if pull.found.is_signed else "none"
    yield JobPlan("pull", tuple(_pull_plan(source, pull, signature)))
    if dry_run:
        yield JobResult({"store": str(root), "from": source, "dry_run": True})
        return
    if not pull.found.is_verified:
        why = "--key FILE verifies its signature" if pull.found.is_signed else "it is not signed"
        yield Note(f"The publisher of the snapshot was not checked: {why}.", warning=True)
    yield JobStarted("pull", len(pull.missing), "files")
    done = yield from yield_file_progress(pull.run(partial(drop_from_keys, root)))
    for server in recheck_servers(root):
        yield Note(
            f"the server of process {server} does not answer: end it, because it may still answer for removed users",
            warning=True,
        )
    if not done.is_purged:
        yield Note(
            "Another program reads the store, so registry.db-wal still has bytes of the previous copy: end that "
            "program, then pull again.",
            warning=True,
        )
    yield ArtifactSaved("store", str(root), "a read-only copy")
    yield JobResult(
        {
            "store": str(root),
            "from": source,
            **_contents(pull.manifest),
            "fetched": len(pull.missing),
            "fetched_bytes": pull.missing_bytes,
            "removed": done.removed,
            "signature": signature,
        }
    )


def _require_outside(root: Path, place: SnapshotPlace) -> None:
    if place.folder is None:
        return
    if place.folder.is_file():
        raise BadInput(f"{place.folder} is a file; a snapshot is a folder.", hint=Command("snapshot", "DIR"))
    folder, store = place.folder.resolve(), root.resolve()
    if folder == store or store in folder.parents:
        raise BadInput(f"{place.folder} is inside the store.", hint="choose a folder elsewhere")


def _serving_choice(reg: Registry, tasks: Sequence[str], name_key: bytes | None) -> ServingChoice:
    from mta_cli.engine.text.labels import find_label
    from mta_cli.pipeline.data.tasks import find_task, task_names
    from store.snapshots.manifest import hash_name
    from store.snapshots.serving_copy import ServingChoice

    chosen = tuple(sorted({find_task(reg, name).name for name in tasks})) or None
    labels = {name: found for name in chosen or task_names(reg) if (found := find_task(reg, name).labels)}

    def label_of(task: str, output: str) -> str | None:
        place = find_label(output, labels[task])
        return None if place is None else labels[task][place]

    return ServingChoice(chosen, labels.keys(), label_of, str if name_key is None else partial(hash_name, name_key))


def _publish_plan(to: str, staged: StagedSnapshot, *, is_signed: bool) -> Iterator[PlanLine]:
    yield PlanLine("to", to)
    yield from _content_lines(staged.manifest)
    yield PlanLine("names", "hashed" if staged.manifest.hashed_names else "plain")
    yield PlanLine("signed", "yes" if is_signed else "no")
    yield PlanLine("to write", f"{len(staged.new):,} files, {staged.new_bytes:,} bytes")
    yield PlanLine("to remove", f"{len(staged.old):,} files")


def _pull_plan(source: str, pull: Pull, signature: str) -> Iterator[PlanLine]:
    yield PlanLine("from", source)
    yield PlanLine("made", f"{pull.manifest.created} by mta {pull.manifest.program}, schema {pull.manifest.schema}")
    yield PlanLine("signature", signature)
    yield from _content_lines(pull.manifest)
    yield PlanLine("store", str(pull.root))
    yield PlanLine("to fetch", f"{len(pull.missing):,} files, {pull.missing_bytes:,} bytes")


def _content_lines(manifest: SnapshotManifest) -> Iterator[PlanLine]:
    yield PlanLine("tasks", "all" if manifest.tasks is None else ", ".join(manifest.tasks))
    yield PlanLine("users", f"{manifest.counts.get('users', 0):,}")
    yield PlanLine("files", f"{len(manifest.sizes):,}, {manifest.total_bytes:,} bytes")


def _contents(manifest: SnapshotManifest) -> dict[str, object]:
    return {
        "created": manifest.created,
        "schema": manifest.schema,
        "tasks": manifest.tasks,
        "users": manifest.counts.get("users", 0),
        "banks": manifest.counts.get("banks", 0),
        "adapters": len(manifest.adapters),
        "bytes": manifest.total_bytes,
        "hashed_names": manifest.hashed_names,
    }
