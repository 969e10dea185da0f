"""Publishing: only new files are written, the manifest comes last, and unneeded files are removed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import fsspec
import pytest

from mta_cli.errors import BadInput, IntegrityFault, StoreBusy
from store.registry import Registry
from store.snapshots.manifest import MAX_MANIFEST_BYTES, SnapshotManifest, decode_manifest
from store.snapshots.place import SnapshotPlace
from store.snapshots.publish import stage_snapshot
from tests.store.making import adapted
from tests.store.snapshots.conftest import KEY, choice, publish


@pytest.fixture(params=["folder", "memory"])
def to(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the snapshot goes."""
    fsspec.filesystem("memory").store.clear()
    yield str(tmp_path / "fleet") if request.param == "folder" else "memory://fleet"
    fsspec.filesystem("memory").store.clear()


def published(to: str) -> SnapshotManifest:
    content = SnapshotPlace(to).read_manifest(MAX_MANIFEST_BYTES)
    assert content is not None
    return decode_manifest(content, KEY, to).content


def test_a_snapshot_is_the_manifest_and_the_files_that_it_names(full: Registry, to: str) -> None:
    first = publish(full, to)
    assert published(to) == first.manifest and SnapshotPlace(to).object_sizes() == first.manifest.sizes
    assert first.manifest.counts == {"users": 3, "banks": 2, "recipes": 2, "stacks": 2, "adapters": 7}
    assert len(first.new) == 8 and first.old == []


def test_only_new_files_are_written_and_old_ones_go(full: Registry, to: str) -> None:
    first = publish(full, to)
    again = publish(full, to)
    assert (again.new, again.old) == ([], [])
    bob, bank = full.users.get("bob").id, full.banks.get("free")
    gone = full.stacks.get(bob, "free", bank.id)
    assert gone is not None
    stack = adapted(full, bob, bank, b"another stack")
    then = publish(full, to)
    assert set(then.new) == {stack.digest, then.manifest.registry}
    assert set(then.old) == {gone.digest, first.manifest.registry}
    assert SnapshotPlace(to).object_sizes() == then.manifest.sizes


def test_the_files_of_a_forgotten_user_leave(full: Registry, to: str) -> None:
    publish(full, to)
    removed = full.users.forget(full.users.get("bob").id).adapters_removed
    assert len(removed) == 2
    assert set(removed) < set(publish(full, to).old)
    assert not set(removed) & SnapshotPlace(to).object_sizes().keys()


def test_a_file_that_was_cut_is_written_again(full: Registry, tmp_path: Path) -> None:
    digest = publish(full, tmp_path / "fleet").manifest.registry
    path = tmp_path / "fleet" / "objects" / digest[:2] / digest
    path.write_bytes(path.read_bytes()[:-1])
    assert publish(full, tmp_path / "fleet").new == [digest]


def test_until_the_manifest_is_written_the_old_snapshot_is_whole(full: Registry, to: str) -> None:
    first = publish(full, to)
    adapted(full, full.users.get("bob").id, full.banks.get("free"), b"another stack")
    with stage_snapshot(full, SnapshotPlace(to), choice(), "1", hashed_names=False) as staged:
        steps = staged.publish(KEY)
        for _ in staged.new:
            next(steps)
            assert published(to) == first.manifest
            assert first.manifest.sizes.items() <= SnapshotPlace(to).object_sizes().items()
        steps.close()
    assert published(to) == first.manifest
    done = publish(full, to)
    assert done.new == [] and published(to) == done.manifest


def test_a_store_that_cannot_be_staged_writes_nothing(full: Registry, tmp_path: Path) -> None:
    with stage_snapshot(full, SnapshotPlace(str(tmp_path / "fleet")), choice(), "1", hashed_names=False) as staged:
        assert len(staged.new) == 8 and staged.new_bytes == staged.manifest.total_bytes
    assert not (tmp_path / "fleet").exists()
    assert list((full.root / "partial").iterdir()) == []


def test_a_damaged_adapter_stops_it_and_a_removed_one_asks_for_another_run(full: Registry, tmp_path: Path) -> None:
    digest = full.banks.get("free").task_adapter
    assert digest is not None
    content = full.files.path(digest).read_bytes()
    full.files.path(digest).write_bytes(content[:-1] + b"?")
    with pytest.raises(IntegrityFault, match="damaged"):
        publish(full, tmp_path / "fleet")
    assert not (tmp_path / "fleet" / "manifest.json").exists()
    full.files.path(digest).write_bytes(content)

    with (
        stage_snapshot(full, SnapshotPlace(str(tmp_path / "fleet")), choice(), "1", hashed_names=False) as staged,
        pytest.raises(StoreBusy, match="removed an adapter"),
    ):
        full.banks.remove(full.banks.get("free").id)
        list(staged.publish(KEY))
    assert publish(full, tmp_path / "fleet").manifest.counts["banks"] == 1


def test_another_programs_manifest_is_not_replaced(full: Registry, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(BadInput, match="another program"):
        publish(full, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("store",)) == ["manifest.json"]


def test_files_of_another_program_are_left(full: Registry, tmp_path: Path) -> None:
    """Many programs name files by SHA-256; the second snapshot leaves them too."""
    digest = "ab" + "0" * 62
    foreign = tmp_path / "fleet" / "objects" / "ab" / digest
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"foreign")
    assert publish(full, tmp_path / "fleet").old == []
    full.users.forget(full.users.get("bob").id)
    assert len(publish(full, tmp_path / "fleet").old) == 3
    assert foreign.read_bytes() == b"foreign"


def test_files_of_unfinished_snapshots_leave(full: Registry, to: str) -> None:
    """Also where two in a row were stopped, and the place had no snapshot before."""
    written = set()
    for content in (b"one", b"two"):
        adapted(full, full.users.get("bob").id, full.banks.get("free"), content)
        with stage_snapshot(full, SnapshotPlace(to), choice(), "1", hashed_names=False) as staged:
            steps = staged.publish(KEY)
            written.update(next(steps) for _ in staged.new)
            steps.close()
    full.users.forget(full.users.get("bob").id)
    left = publish(full, to).manifest
    assert written - left.sizes.keys() and SnapshotPlace(to).object_sizes() == left.sizes
    assert SnapshotPlace(to).read_manifest(MAX_MANIFEST_BYTES, "unfinished.json") is None


def test_writers_go_on_while_a_snapshot_is_made(full: Registry, tmp_path: Path) -> None:
    seen = []

    def label_of(task: str, output: str) -> None:
        with closing(sqlite3.connect(full.root / "registry.db", timeout=0)) as other, other:
            other.execute("UPDATE users SET created = 'now'")
        seen.append(output)

    publish(full, tmp_path / "fleet", label_of=label_of)
    assert seen
