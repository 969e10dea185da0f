"""Pulling: verified before anything changes, replaced beside readers, and hostile snapshots leave nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest

from mta_cli.errors import BadInput, Command, IntegrityFault, MtaError, NotFound, StoreBusy
from store.backup import create_backup
from store.process_lock import process_lock
from store.registry import Registry
from store.restore import stage_restore
from store.snapshots.manifest import encode_manifest
from store.snapshots.place import SnapshotPlace
from store.snapshots.publish import StagedSnapshot
from store.snapshots.pull import Pull
from tests.store.making import adapted, person
from tests.store.snapshots.conftest import KEY, OTHER_KEY, end_of, publish, pull


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Where the snapshot lies."""
    return tmp_path / "fleet"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """Where the copy goes."""
    return tmp_path / "node"


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, but locks and logs."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix not in (".lock",) and not path.name.startswith("registry.db-")
    }


def object_path(fleet: Path, digest: str) -> Path:
    return fleet / "objects" / digest[:2] / digest


@pytest.mark.parametrize("place", ["folder", "memory://fleet"])
def test_a_pulled_store_reads_as_the_store(full: Registry, fleet: Path, node: Path, place: str) -> None:
    fsspec.filesystem("memory").store.clear()
    source = fleet if place == "folder" else place
    publish(full, source)
    assert (pull(node, source).removed, node.stat().st_mode & 0o777) == (0, 0o700)
    bob, bank = full.users.get("bob").id, full.banks.get("free")
    with Registry.open(node) as copy:
        assert copy.check_integrity() == [] and copy.users.names() == ["alice", "bob", "carol"]
        stack = copy.stacks.get(bob, "free", bank.id)
        assert stack == full.stacks.get(bob, "free", bank.id) and stack is not None
        assert copy.files.read(stack.digest) == b"stack"
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in node.rglob("*.safetensors"))


def test_a_copy_is_only_read(full: Registry, fleet: Path, node: Path, tmp_path: Path) -> None:
    list(create_backup(full, tmp_path / "backup", "1"))
    publish(full, fleet)
    pull(node, fleet)
    before = contents(node)
    with Registry.open(node) as copy:
        assert copy.repairs() == []
        for write in (
            lambda: copy.users.add("dora"),
            lambda: copy.users.forget(copy.users.get("bob").id),
            lambda: copy.users.set_can_anchor(copy.users.get("bob").id, False),
        ):
            with pytest.raises(BadInput, match="copy of a snapshot, which cannot be changed"):
                write()
        with copy.hold_users("chat", [copy.users.get("bob").id]):
            pass
    with pytest.raises(BadInput, match="copy of a snapshot"), stage_restore(node, 0.1) as staged:
        list(staged.unpack(tmp_path / "backup"))
    assert contents(node) == before


def test_a_refresh_fetches_what_is_new_and_removes_what_is_gone(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    assert Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1).missing == []
    bob = full.users.get("bob").id
    stack = adapted(full, bob, full.banks.get("free"), b"another stack")
    then = publish(full, fleet)
    assert set(Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1).missing) == {stack.digest, then.manifest.registry}
    assert pull(node, fleet).removed == 1
    with Registry.open(node) as copy:
        assert copy.check_integrity() == [] and copy.files.stored_digests() == then.manifest.adapters


def test_a_pull_that_cannot_replace_the_copy_takes_back_what_was_done_before(
    full: Registry, fleet: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(full, fleet)
    pull(node, fleet)
    full.users.forget(full.users.get("bob").id)
    registry = publish(full, fleet).manifest.registry
    told: list[object] = []

    def before_install(gone: Sequence[str]) -> Callable[[], None]:
        told.append(list(gone))
        return lambda: told.append("taken back")

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr("store.snapshots.pull.replace_database", fail)
        with pytest.raises(MtaError):
            list(Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1).run(before_install))
    assert told == [["bob"], "taken back"]
    size = Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1).manifest.sizes[registry]
    usage = shutil.disk_usage(node)._replace(free=2 * size - 1)
    monkeypatch.setattr("store.snapshots.pull.shutil.disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match="has room"):
        Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1)


def test_a_damaged_or_missing_file_of_the_copy_is_fetched_again(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    first, second, *_ = sorted(node.glob("adapters/??/*"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    (node / "registry.db").unlink()
    pull(node, fleet)
    with Registry.open(node) as copy:
        assert copy.check_integrity() == []


def test_a_damaged_registry_of_the_copy_is_fetched_again(full: Registry, fleet: Path, node: Path) -> None:
    registry = publish(full, fleet).manifest.registry
    pull(node, fleet)
    with (node / "registry.db").open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * 4096)
    assert Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1).missing == [registry]
    pull(node, fleet)
    with Registry.open(node) as copy:
        assert copy.check_integrity() == []


def test_no_byte_of_a_forgotten_user_stays(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    with Registry.open(node) as reader:  # as a running server has it
        assert "bob" in reader.users.names()
        full.users.forget(full.users.get("bob").id)
        publish(full, fleet)
        assert pull(node, fleet).is_purged
        found = [path for place in (node, fleet) for path in place.rglob("*") if path.is_file()]
        assert not [path for path in found if b"bob" in path.read_bytes() or path.read_bytes() == b"stack"]


def test_a_running_reader_sees_the_new_copy(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    with Registry.open(node) as reader:
        file = (node / "registry.db").stat().st_ino
        assert reader.users.names() == ["alice", "bob", "carol"]
        full.users.add("dora")
        full.users.forget(full.users.get("carol").id)
        publish(full, fleet)
        pull(node, fleet)
        assert reader.users.names() == ["alice", "bob", "dora"]
        assert reader.check_integrity() == []
    assert (node / "registry.db").stat().st_ino == file


def test_a_reader_in_the_middle_sees_the_old_copy_to_its_end(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    with closing(sqlite3.connect(node / "registry.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        before = reader.execute("SELECT name FROM users").fetchall()
        full.users.forget(full.users.get("bob").id)
        publish(full, fleet)
        assert not pull(node, fleet).is_purged, "the reader keeps the bytes of the copy before"
        assert reader.execute("SELECT name FROM users").fetchall() == before
        reader.execute("COMMIT")
        assert reader.execute("SELECT name FROM users").fetchall() == [("alice",), ("carol",)]
        assert pull(node, fleet).is_purged
        assert not [path for path in node.rglob("*") if path.is_file() and b"bob" in path.read_bytes()]


def test_a_store_that_is_no_copy_is_never_replaced(full: Registry, fleet: Path, tmp_path: Path) -> None:
    publish(full, fleet)
    other = tmp_path / "other"
    with Registry.open(other, create=True) as reg:
        person(reg, "zoe", "a text")
    before = contents(other)
    with pytest.raises(BadInput, match="not a copy of a snapshot"):
        pull(other, fleet)
    assert contents(other) == before


def test_files_of_others_are_not_taken_for_a_copys(full: Registry, fleet: Path, tmp_path: Path) -> None:
    """A project's own folder `adapters`, or a store whose database was moved aside."""
    publish(full, fleet)
    own = tmp_path / "project" / "adapters" / "v1" / "mine.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"weights")
    with pytest.raises(BadInput, match="not a copy of a snapshot"):
        pull(tmp_path / "project", fleet)
    assert own.read_bytes() == b"weights"


def test_an_older_snapshot_does_not_bring_removed_users_back(full: Registry, fleet: Path, node: Path) -> None:
    first = publish(full, fleet)
    older = encode_manifest(msgspec.structs.replace(first.manifest, created="2020-01-01T00:00:00+00:00"), KEY)
    pull(node, fleet)
    (fleet / "manifest.json").write_bytes(older)
    with pytest.raises(IntegrityFault, match="newer"):
        pull(node, fleet)


def test_a_snapshot_of_the_future_is_refused(full: Registry, fleet: Path, node: Path) -> None:
    """It would keep every honest snapshot out."""
    first = publish(full, fleet).manifest
    for ahead, is_taken in ((timedelta(minutes=50), True), (timedelta(minutes=70), False), (timedelta(3650), False)):
        moved = (first.time + ahead).astimezone(timezone(timedelta(hours=-9))).isoformat()
        (fleet / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(first, created=moved), KEY))
        if is_taken:
            Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1)
        else:
            with pytest.raises(IntegrityFault, match="future"):
                pull(node, fleet)
    for malformed in ("", "tomorrow", "9999-12-31T23:59:59-23:00", 5, None):
        document = json.loads(encode_manifest(first, None)) | {"created": malformed}
        (fleet / "manifest.json").write_text(json.dumps(document))
        with pytest.raises(IntegrityFault, match="damaged"):
            pull(node, fleet, None)
    assert not node.exists()


def test_a_copy_that_was_verified_stays_with_its_key(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    full.users.forget(full.users.get("bob").id)
    for signed_with, key in ((KEY, None), (None, None), (OTHER_KEY, None), (OTHER_KEY, OTHER_KEY)):
        publish(full, fleet, signed_with)
        before = contents(node)
        with pytest.raises(IntegrityFault, match="verified with a key"):
            pull(node, fleet, key)
        assert contents(node) == before
    with pytest.raises(IntegrityFault, match="verified with a key"):
        Pull.begin(node, SnapshotPlace(str(fleet)), None, 0.1)
    end_of(Pull.begin(node, SnapshotPlace(str(fleet)), OTHER_KEY, 0.1, trust_unsigned=True).run())
    pull(node, fleet, OTHER_KEY)
    publish(full, fleet, KEY)
    with pytest.raises(IntegrityFault, match="verified with a key"):
        pull(node, fleet, KEY)
    end_of(Pull.begin(node, SnapshotPlace(str(fleet)), None, 0.1, trust_unsigned=True).run())
    pull(node, fleet, None)
    with Registry.open(node) as copy:
        assert copy.users.names() == ["alice", "carol"]


def test_a_manifest_does_not_say_of_itself_that_it_was_verified(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    document = json.loads((fleet / "manifest.json").read_bytes())
    document["signature"]["verified"] = True
    (fleet / "manifest.json").write_text(json.dumps(document))
    pull(node, fleet, None)
    pull(node, fleet, None)


def test_a_pull_that_is_stopped_anywhere_is_completed_by_the_next(
    full: Registry, fleet: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(full, fleet)
    for function in ("process_lock", "replace_file", "move_file", "replace_database", "remove_file"):
        with monkeypatch.context() as broken:
            broken.setattr(f"store.snapshots.pull.{function}", _refuse)
            if function == "remove_file":
                adapted(full, full.users.get("bob").id, full.banks.get("free"), b"another stack")
                publish(full, fleet)
            with pytest.raises(KeyboardInterrupt):
                pull(node, fleet)
    pull(node, fleet)
    with Registry.open(node) as copy:
        assert copy.check_integrity() == [] and copy.users.names() == ["alice", "bob", "carol"]
    assert list((node / "partial").iterdir()) == []


def _refuse(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_two_pulls_do_not_write_at_once(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    with process_lock(node, "pull", 0, "x"), pytest.raises(StoreBusy, match="pulling a snapshot"):
        pull(node, fleet)


def test_a_pull_beside_another_that_came_first_is_run_again(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    full.users.forget(full.users.get("bob").id)
    publish(full, fleet)
    slow = Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1)
    adapted(full, full.users.get("carol").id, full.banks.get("free"), b"carol's")
    publish(full, fleet)
    pull(node, fleet)
    after = contents(node)
    with pytest.raises(MtaError):  # its files are gone from the snapshot, or the copy is another one now
        list(slow.run())
    assert contents(node) == after
    slow = Pull.begin(node, SnapshotPlace(str(fleet)), KEY, 0.1)
    (node / "snapshot.json").write_bytes(b"{}")
    with pytest.raises(StoreBusy, match="Another pull"):
        list(slow.run())


Harm = Callable[[Path, str], None]
"""Spoils the snapshot in a folder; the digest is of an adapter that the node has not."""


def _object(change: Callable[[bytes], bytes]) -> Harm:
    def harm(fleet: Path, digest: str) -> None:
        path = object_path(fleet, digest)
        path.write_bytes(change(path.read_bytes()))

    return harm


def _in_place_of_object(make: Callable[[Path], None]) -> Harm:
    def harm(fleet: Path, digest: str) -> None:
        object_path(fleet, digest).unlink()
        make(object_path(fleet, digest))

    return harm


def _file(content: str | None) -> Harm:
    def harm(fleet: Path, digest: str) -> None:
        (fleet / "manifest.json").unlink()
        if content is not None:
            (fleet / "manifest.json").write_text(content)

    return harm


def _sizes(change: Callable[[dict[str, int]], dict[str, int]]) -> Harm:
    def harm(fleet: Path, digest: str) -> None:
        document = json.loads((fleet / "manifest.json").read_bytes())
        document["sizes"] = change(document["sizes"])
        (fleet / "manifest.json").write_text(json.dumps(document))

    return harm


def _registry(*statements: str) -> Harm:
    """The registry changed by SQL, under its new digest, in a manifest that names it."""

    def harm(fleet: Path, digest: str) -> None:
        changed = fleet / "changed"
        shutil.copyfile(object_path(fleet, json.loads((fleet / "manifest.json").read_bytes())["registry"]), changed)
        with closing(sqlite3.connect(changed, isolation_level=None)) as conn:
            for statement in statements:
                conn.execute(statement)
        _name_registry(fleet, changed.read_bytes())

    return harm


def _other_registry(content: bytes) -> Harm:
    return lambda fleet, digest: _name_registry(fleet, content)


def _name_registry(fleet: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    path = object_path(fleet, digest)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    document = json.loads((fleet / "manifest.json").read_bytes())
    sizes = {name: size for name, size in document["sizes"].items() if name != document["registry"]}
    document |= {"registry": digest, "sizes": {**sizes, digest: len(content)}}
    (fleet / "manifest.json").write_text(json.dumps(document))


HARMS: dict[str, tuple[Harm, type[MtaError]]] = {
    "an object with a changed byte": (_object(lambda content: content[:-1] + b"?"), IntegrityFault),
    "an object that is cut": (_object(lambda content: content[:-1]), IntegrityFault),
    "an object that is longer": (_object(lambda content: content + b"?"), IntegrityFault),
    "an object that is gone": (_in_place_of_object(lambda path: None), NotFound),
    "an object that is a link": (_in_place_of_object(lambda path: path.symlink_to("/dev/zero")), BadInput),
    "an object that is a pipe": (_in_place_of_object(os.mkfifo), BadInput),
    "no manifest": (_file(None), NotFound),
    "a manifest that is no JSON": (_file("{"), IntegrityFault),
    "more bytes than the disk has": (_sizes(lambda sizes: dict.fromkeys(sizes, 10**15)), BadInput),
    "sizes that are wrong": (_sizes(lambda sizes: dict.fromkeys(sizes, 1)), IntegrityFault),
    "a path in place of a digest": (_sizes(lambda sizes: {**sizes, "../../x": 1}), IntegrityFault),
    "an adapter that the registry has not": (_sizes(lambda sizes: {**sizes, "0" * 64: 0}), NotFound),
    "a trigger": (
        _registry("CREATE TRIGGER evil AFTER INSERT ON users BEGIN DELETE FROM users; END"),
        IntegrityFault,
    ),
    "a table too many": (_registry("CREATE TABLE evil (x)"), IntegrityFault),
    "a column too many": (_registry("ALTER TABLE users ADD COLUMN evil TEXT"), IntegrityFault),
    "a newer schema": (_registry("PRAGMA user_version = 99"), IntegrityFault),
    "a reference to nothing": (_registry("DELETE FROM users WHERE name = 'bob'"), IntegrityFault),
    "an adapter too few": (
        _registry("DELETE FROM stacks", "DELETE FROM adapters WHERE kind = 'stack'"),
        IntegrityFault,
    ),
    "a registry that is no database": (_other_registry(b"words" * 2000), IntegrityFault),
    "an empty registry": (_other_registry(b""), IntegrityFault),
}


@pytest.fixture
def plain(full: Registry, fleet: Path) -> Iterator[StagedSnapshot]:
    """A snapshot without a signature, which anyone with write access can change."""
    yield publish(full, fleet, None)


@pytest.mark.parametrize("harm", HARMS)
def test_a_hostile_snapshot_leaves_nothing(plain: StagedSnapshot, fleet: Path, node: Path, harm: str) -> None:
    make, expected = HARMS[harm]
    make(fleet, min(plain.manifest.adapters))
    with pytest.raises(expected) as caught:
        pull(node, fleet, None)
    assert "\n" not in str(caught.value) and len(caught.value.message) < 400 + 2 * len(str(fleet))
    assert not node.exists()


@pytest.mark.parametrize("harm", HARMS)
def test_a_hostile_snapshot_changes_no_copy(
    full: Registry, plain: StagedSnapshot, fleet: Path, node: Path, harm: str
) -> None:
    make, expected = HARMS[harm]
    pull(node, fleet, None)
    stack = adapted(full, full.users.get("bob").id, full.banks.get("free"), b"0" * 99)
    publish(full, fleet, None)
    before = contents(node)
    make(fleet, stack.digest)
    with pytest.raises(expected):
        pull(node, fleet, None)
    assert contents(node) == before
    with Registry.open(node) as copy:
        assert copy.check_integrity() == []


def test_an_object_without_an_end_is_not_read_to_it(
    full: Registry, fleet: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(full, fleet)
    monkeypatch.setattr(SnapshotPlace, "read_object", lambda self, digest: iter(lambda: b"0" * 99_999, b""))
    with pytest.raises(IntegrityFault, match="damaged"):
        pull(node, fleet)
    assert not node.exists()


def test_a_wrong_key_changes_nothing(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    with pytest.raises(IntegrityFault, match="not signed with this key"):
        pull(node, fleet, OTHER_KEY)
    assert not node.exists()
    pull(node, fleet)
    publish(full, fleet, None)
    before = contents(node)
    with pytest.raises(IntegrityFault, match="is not signed"):
        pull(node, fleet)
    assert contents(node) == before


def test_a_copy_of_an_older_schema_asks_for_a_pull(full: Registry, fleet: Path, node: Path) -> None:
    publish(full, fleet)
    pull(node, fleet)
    with closing(sqlite3.connect(node / "registry.db")) as conn:
        conn.execute("PRAGMA user_version = 13")
    with pytest.raises(BadInput, match="older mta") as caught:
        Registry.open(node)
    assert caught.value.hint == (
        "make a new snapshot with this version of mta, then run ",
        Command("pull"),
        " here",
    )
    pull(node, fleet)
    with Registry.open(node) as copy:
        assert copy.check_integrity() == []
