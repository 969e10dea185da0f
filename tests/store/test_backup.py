"""Backups: whole, verified, of one moment. Restores: at once, and no forgotten user comes back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import sqlite3
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

import pytest

from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound, StoreBusy
from store.backup import Manifest, create_backup
from store.database_copy import databases_saved_before_migration
from store.registry import Registry
from store.restore import RestoreResult, read_replaced_store, stage_restore
from store.schema import SCHEMA_VERSION
from tests.store.making import adapted, adapter, bank, item, person
from tests.store.test_schema import older_store, sql
from tests.trust.tally import tally

SENTENCE = "the heron waits by lock nineteen"


def backed_up(reg: Registry, path: Path) -> Manifest:
    steps = create_backup(reg, path, "1")
    while True:
        try:
            next(steps)
        except StopIteration as end:
            manifest: Manifest = end.value
            return manifest


def restored(root: Path, archive: Path) -> RestoreResult:
    with stage_restore(root, 1.0) as staged:
        list(staged.unpack(archive))
        return staged.install()


def contents(archive: Path) -> dict[str, bytes]:
    """The content of each member by its name."""
    with tarfile.open(archive) as found:
        return {member.name: cast(IO[bytes], found.extractfile(member)).read() for member in found}


def dump(root: Path) -> list[str]:
    """All that a store says, in SQL, and its adapter files."""
    with Registry.open(root) as reg:
        assert reg.check_integrity() == []
    with sqlite3.connect(root / "registry.db") as conn:
        rows = [line for line in conn.iterdump() if not line.startswith('INSERT INTO "items_fts_')]
    conn.close()
    return sorted(rows) + sorted(path.name for path in root.glob("adapters/??/*"))


@pytest.fixture
def full(reg: Registry) -> Registry:
    """A store with a bank of one anchor and an adapted user."""
    alice, bob = person(reg, "alice", SENTENCE), person(reg, "bob", "the sea")
    adapted(reg, bob, bank(reg, [alice]))
    return reg


@pytest.fixture
def archive(full: Registry, tmp_path: Path) -> Path:
    """A backup of it; the store is closed."""
    path = tmp_path / "backup.mta"
    backed_up(full, path)
    full.close()
    return path


def test_a_backup_is_one_tar_of_verified_members_for_the_owner_alone(full: Registry, tmp_path: Path) -> None:
    path = tmp_path / "backup.mta"
    manifest = backed_up(full, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (manifest.schema, manifest.users, manifest.adapters) == (SCHEMA_VERSION, 2, 3)
    members = contents(path)
    database, digests = members["registry.db"], sorted(adapter.digest for adapter in full.adapters.all())
    assert list(members) == ["manifest.json", "registry.db", *(f"adapters/{d[:2]}/{d}.safetensors" for d in digests)]
    assert (hashlib.sha256(database).hexdigest(), len(database)) == (manifest.sha256, manifest.bytes)
    assert [hashlib.sha256(content).hexdigest() for content in list(members.values())[2:]] == digests
    with tarfile.open(path) as found:
        assert {(member.mode, member.type) for member in found} == {(0o600, tarfile.REGTYPE)}
    assert [other.name for other in tmp_path.iterdir() if other.name not in ("backup.mta", "store")] == []


@pytest.mark.parametrize("harm", ["nothing", "rows", "files", "unreadable", "page", "gone"])
def test_backup_damage_restore(full: Registry, tmp_path: Path, harm: str) -> None:
    root, path = full.root, tmp_path / "backup.mta"
    backed_up(full, path)
    full.close()
    before = dump(root)
    if harm == "rows":
        sql(root, "DELETE FROM items")
        with Registry.open(root) as reg:
            adapter(reg, b"of a later day")
    elif harm == "files":
        first, second, _ = root.glob("adapters/??/*")
        first.write_bytes(b"x")
        second.unlink()
    elif harm == "unreadable":
        (root / "registry.db").write_bytes(b"not a database" * 999)
    elif harm == "page":
        ((page,),) = sql(root, "SELECT rootpage FROM sqlite_master WHERE name = 'users'")
        with (root / "registry.db").open("r+b") as file:
            file.seek(4096 * (int(str(page)) - 1))
            file.write(os.urandom(4096))
    elif harm == "gone":
        for file in ("registry.db", *root.glob("adapters/??/*")):
            (root / file).unlink()
    done = restored(root, path)
    assert (done.users, done.adapters, done.forgotten) == (2, 3, 0)
    assert bool(done.replaced.problem) == (harm in ("unreadable", "page", "gone"))
    assert dump(root) == before
    assert sorted(entry.name for entry in root.iterdir()) == ["adapters", "locks", "partial", "registry.db"]
    tally(f"a store with {harm} damaged", "restored, row for row")


def test_a_restore_into_a_place_without_a_store(archive: Path, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "new"
    done = restored(other, archive)
    assert "no store" in done.replaced.problem and done.replaced.users is None
    assert dump(other) == dump(root)
    assert other.stat().st_mode & 0o777 == 0o700


def test_whoever_was_forgotten_since_is_forgotten_again(full: Registry, tmp_path: Path) -> None:
    root, path, second = full.root, tmp_path / "one", tmp_path / "two"
    backed_up(full, path)
    full.users.forget(full.users.get("alice").id)
    carol = full.users.add("carol").id
    full.items.append_items(carol, [item("k", "somebody else, under a number that was free")])
    full.close()
    assert restored(root, path).forgotten == 1
    with Registry.open(root) as reg:
        assert reg.users.names() == ["bob"] and reg.check_integrity() == []
        assert [anchor.user_id for anchor in reg.banks.anchors(reg.banks.get("free").id)] == [None]
        backed_up(reg, second)
    assert not [file for file in root.rglob("*") if file.is_file() and SENTENCE.encode() in file.read_bytes()]
    assert restored(root, path).forgotten == 1, "the restored store knows it too"
    assert restored(root, second).forgotten == 0, "and a backup that was made of it"
    assert restored(root, path).forgotten == 1
    with Registry.open(root) as reg:
        assert reg.count_rows()["tombstones"] == 1
    tally("users forgotten between a backup and its restore", "forgotten again", 3)


def test_a_name_that_is_taken_again_is_another_user(full: Registry, tmp_path: Path) -> None:
    path, later = tmp_path / "one", tmp_path / "two"
    backed_up(full, path)
    full.users.forget(full.users.get("alice").id)
    full.users.add("alice")
    backed_up(full, later)
    full.close()
    assert restored(full.root, later).users == 2
    assert restored(full.root, path).users == 1


def test_consent_that_was_taken_back_since_is_taken_back_again(full: Registry, tmp_path: Path) -> None:
    path = tmp_path / "backup"
    backed_up(full, path)
    full.users.set_can_anchor(full.users.get("alice").id, False)
    full.close()
    assert restored(full.root, path).withdrawn == 1
    with Registry.open(full.root) as reg:
        assert not reg.users.get("alice").can_anchor and reg.users.get("bob").can_anchor
        assert [anchor.stale for anchor in reg.banks.anchors(reg.banks.get("free").id)] == [True]


def test_bytes_that_a_purge_has_not_reached_are_in_no_backup(
    full: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(full._eraser), "purge_deleted_bytes", lambda _: None)
    full.users.forget(full.users.get("alice").id)
    path = tmp_path / "backup"
    backed_up(full, path)
    content = contents(path)["registry.db"]
    assert b"heron" not in content and b"alice" not in content


def test_free_pages_of_a_store_are_in_no_backup(full: Registry, tmp_path: Path) -> None:
    full.tasks.save_task("large", "x" * 20 * 2**20)
    full._db.execute_write("DELETE FROM tasks WHERE name = 'large'")
    path = tmp_path / "backup.mta"
    assert backed_up(full, path).bytes < 2**20
    full.close()
    before = dump(full.root)
    restored(full.root, path)
    assert (full.root / "registry.db").read_bytes()[18:20] == b"\2\2", "with SQLite's log, as every store"
    assert dump(full.root) == before


@pytest.mark.skipif(sys.platform != "linux", reason="paths are UTF-8")
def test_a_path_that_is_not_utf8(full: Registry, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    backed_up(full, folder / "backup.mta")
    assert restored(folder / "store", folder / "backup.mta").users == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_of_the_backup_is_not_taken_for_the_stores(
    full: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full, "copy_database", lambda _: full._db.copy_to(Path("/dev/full")))
    with pytest.raises(BadInput, match=r"disk is full: .*backup\.mta was not written"):
        backed_up(full, tmp_path / "backup.mta")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_restore_needs_room_for_the_database_twice_where_it_replaces_one(
    archive: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(root)._replace(free=archive.stat().st_size + 1)
    monkeypatch.setattr("store.backup.shutil.disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match="has room for"):
        restored(root, archive)
    assert restored(tmp_path / "new", archive).users == 2


def test_one_flipped_byte_is_named_or_changes_nothing(archive: Path, root: Path, tmp_path: Path) -> None:
    before, content, rng, named = dump(root), archive.read_bytes(), random.Random("archive"), 0
    other = tmp_path / "other"
    for _ in range(60):
        place = rng.randrange(len(content))
        archive.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
        try:
            with stage_restore(other, 1.0) as staged:
                list(staged.unpack(archive))
                staged.install()
            assert dump(other) == before, place
        except (IntegrityFault, BadInput) as error:
            assert error.hint
            named += 1
    assert named > 40
    tally("one bit of a backup", "named", named)
    tally("one bit of a backup", "the same store", 60 - named)


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.9, 0.99])
def test_a_truncated_archive_is_named(archive: Path, root: Path, share: float) -> None:
    before, content = dump(root), archive.read_bytes()
    archive.write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    with pytest.raises((IntegrityFault, BadInput)) as caught, stage_restore(root, 1.0) as staged:
        list(staged.unpack(archive))
    assert caught.value.hint and dump(root) == before
    assert list((root / "partial").iterdir()) == []


Members = dict[str, bytes]


def write_tar(archive: Path, members: Members, *more: tarfile.TarInfo) -> None:
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as made:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        for member in more:
            made.addfile(member)


def set_manifest(**fields: object) -> Callable[[Members], object]:
    """A change of the manifest's fields; None removes one."""

    def edit(members: Members) -> None:
        found = {**json.loads(members["manifest.json"]), **fields}
        left = {name: value for name, value in found.items() if value is not None}
        members["manifest.json"] = json.dumps(left).encode()

    return edit


def set_database(change: Callable[[sqlite3.Connection], object]) -> Callable[[Members], object]:
    def edit(members: Members) -> None:
        conn = sqlite3.connect(":memory:", isolation_level=None)
        conn.deserialize(members["registry.db"])
        conn.execute("PRAGMA writable_schema = ON")
        change(conn)
        members["registry.db"] = conn.serialize()
        conn.close()
        content = members["registry.db"]
        set_manifest(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))(members)

    return edit


def hide_trigger(db: sqlite3.Connection, kind: str = "trigger", name: str = "sqlite_t", table: str = "users") -> None:
    trigger = "CREATE TRIGGER sqlite_t AFTER DELETE ON users BEGIN SELECT 1; END"
    db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, 0, ?)", (kind, name, table, trigger))


def special(name: str, kind: bytes, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in fields.items():
        setattr(member, field, value)
    return member


ADAPTER = f"adapters/{'a' * 2}/{'a' * 64}.safetensors"
HOSTILE: dict[str, Callable[[Members], object] | tarfile.TarInfo] = {
    "a path that climbs": lambda members: members.update({"../outside": b"x"}),
    "an absolute path": lambda members: members.update({"/tmp/outside": b"x"}),
    "a path of Windows": lambda members: members.update({"adapters\\aa\\..\\..\\x": b"x"}),
    "a settings file": lambda members: members.update({"mta.toml": b"x"}),
    "a name that is not ASCII": lambda members: members.update({"adäpters": b"x"}),
    "an adapter in another's place": lambda members: members.update({ADAPTER: b"x"}),
    "a path that climbs from adapters": lambda members: members.update({f"adapters/../{'a' * 62}.safetensors": b"x"}),
    "a symbolic link": special(ADAPTER, tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": special(ADAPTER, tarfile.LNKTYPE, linkname="../outside"),
    "a device": special(ADAPTER, tarfile.CHRTYPE),
    "a pipe": special(ADAPTER, tarfile.FIFOTYPE),
    "a folder": special("adapters/aa", tarfile.DIRTYPE),
    "a sparse file": special(ADAPTER, tarfile.GNUTYPE_SPARSE),
    "a header that extends the next": special(ADAPTER, tarfile.XHDTYPE, size=10**12),
    "a header of a long name": special("x" * 200, tarfile.REGTYPE),
    "a size that goes back": special(ADAPTER, tarfile.REGTYPE, size=-(10**4)),
    "a size beyond the file": special(ADAPTER, tarfile.REGTYPE, size=10**15),
    "a member twice": special("registry.db", tarfile.REGTYPE),
    "an adapter that is not of the store": lambda members: members.update(
        {f"adapters/{(d := hashlib.sha256(b'x').hexdigest())[:2]}/{d}.safetensors": b"x"}
    ),
    "a member that is not there": lambda members: members.pop(next(n for n in members if "adapters" in n)),
    "no database": lambda members: members.pop("registry.db"),
    "another digest": lambda members: members.update({"registry.db": members["registry.db"][:-1] + b"?"}),
    "a manifest that is none": lambda members: members.update({"manifest.json": b"[" * 10_000}),
    "a manifest that is not a text": lambda members: members.update({"manifest.json": b"\xff"}),
    "a large manifest": lambda members: members.update({"manifest.json": b" " * 10**6}),
    "a number below zero": set_manifest(bytes=-1),
    "no format": set_manifest(format=None),
    "another format": set_manifest(format="words"),
    "a version that is not a number": set_manifest(schema="8"),
    "another schema than it says": set_manifest(schema=SCHEMA_VERSION - 1),
    "a newer schema": set_manifest(schema=SCHEMA_VERSION + 1),
    "a newer format": set_manifest(version=3, more=[]),
    "a trigger by the name of the migrations' table": set_database(
        lambda db: db.execute("CREATE TRIGGER _sqlite_migrations AFTER DELETE ON users BEGIN SELECT 1; END")
    ),
    "a trigger by a name of SQLite": set_database(hide_trigger),
    "a trigger that is called an index": set_database(
        lambda db: hide_trigger(db, "index", "sqlite_stat1", "_sqlite_migrations")
    ),
    "a trigger": set_database(lambda db: db.execute("CREATE TRIGGER t AFTER INSERT ON users BEGIN SELECT 1; END")),
    "a table": set_database(lambda db: db.execute("CREATE TABLE more (x)")),
    "a missing index": set_database(lambda db: db.execute("DROP INDEX users_by_uuid")),
    "a dangling reference": set_database(lambda db: db.execute("UPDATE items SET user_id = 90 + id")),
    "an index of other words": set_database(
        lambda db: db.execute("INSERT INTO items_fts (items_fts) VALUES ('delete-all')")
    ),
    "a row without its file": set_database(
        lambda db: db.execute("UPDATE adapters SET digest = hex(zeroblob(32)) WHERE kind = 'stack'")
    ),
    "another program's database": set_database(lambda db: db.execute("PRAGMA application_id = 7")),
    "a database that is newer than it says": set_database(lambda db: db.execute("PRAGMA user_version = 99")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_backup_holds_is_refused_before_the_store_is_touched(
    archive: Path, root: Path, tmp_path: Path, name: str
) -> None:
    before, files = dump(root), sorted(path for path in tmp_path.rglob("*") if path.is_file())
    members, harm = contents(archive), HOSTILE[name]
    if isinstance(harm, tarfile.TarInfo):
        write_tar(archive, members, harm)
    else:
        harm(members)
        write_tar(archive, members)
    with pytest.raises(IntegrityFault) as caught, stage_restore(root, 1.0) as staged:
        list(staged.unpack(archive))
    assert caught.value.hint and str(archive) in caught.value.message
    if name.startswith("a newer"):
        assert "mta" in caught.value.hint
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert dump(root) == before
    tally("archives that are not as a backup is", "refused, the store untouched")


def test_what_is_no_archive(root: Path, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("words")
    write_tar(tmp_path / "other.tar", {"a": b"b"})
    for name, kind in (("words", BadInput), ("other.tar", BadInput), ("nothing", NotFound)):
        with pytest.raises(kind), stage_restore(root, 1.0) as staged:
            list(staged.unpack(tmp_path / name))
    assert not root.exists()


def test_white_space_of_another_version_in_the_schema_is_no_fault(archive: Path, root: Path) -> None:
    index = "UPDATE sqlite_master SET sql = sql || char(10) WHERE name = 'eval_banks_on_bank'"
    members = contents(archive)
    set_database(lambda db: db.execute(index))(members)
    write_tar(archive, members)
    assert restored(root, archive).users == 2


def test_an_older_backup_is_migrated(archive: Path, tmp_path: Path) -> None:
    old, members = tmp_path / "old", contents(archive)
    older_store(old)
    sql(old, "INSERT INTO users (id, name, created) VALUES (7, 'alice', '2020')")
    sql(old, "PRAGMA wal_checkpoint(TRUNCATE)")
    content = (old / "registry.db").read_bytes()
    set_manifest(schema=13, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))(members)
    write_tar(archive, {"manifest.json": members["manifest.json"], "registry.db": content})
    done = restored(old, archive)
    assert done.replaced.problem == "" and done.replaced.users == 1
    with Registry.open(old) as reg:
        assert reg.users.names() == ["alice"] and reg.check_integrity() == []


def test_nothing_is_replaced_while_another_has_the_store_open(archive: Path, root: Path) -> None:
    before = dump(root)
    with Registry.open(root), pytest.raises(StoreBusy):
        restored(root, archive)
    assert dump(root) == before
    restored(root, archive)


def test_a_store_that_cannot_be_opened_is_not_taken_for_a_damaged_one(archive: Path, root: Path) -> None:
    """Its forgotten users would come back."""
    log = root / "registry.db-wal"
    log.unlink(missing_ok=True)
    log.mkdir()
    with pytest.raises(BadInput, match="cannot be opened"):
        read_replaced_store(root)
    with pytest.raises(BadInput, match="cannot be opened"):
        restored(root, archive)
    log.rmdir()
    assert Registry.open(root).close() is None


def test_a_newer_or_foreign_store_is_not_replaced(archive: Path, root: Path) -> None:
    for change in (f"PRAGMA user_version = {SCHEMA_VERSION + 1}", "PRAGMA application_id = 7"):
        sql(root, change)
        with pytest.raises(IntegrityFault):
            read_replaced_store(root)
        with pytest.raises(IntegrityFault):
            restored(root, archive)


def test_what_a_killed_restore_left_goes_with_the_next(archive: Path, root: Path) -> None:
    left = root / "partial" / ".mta-00.tmp"
    (left / "adapters").mkdir(parents=True)
    (left / "registry.db").write_bytes(b"words")
    restored(root, archive)
    assert not left.exists()
    left.mkdir()
    Registry.open(root).close()
    assert not left.exists()


def test_a_backup_beside_writers_is_of_one_moment(full: Registry, tmp_path: Path) -> None:
    """Each write adds an item for both users and a stack in the place of the one before; backups have all or none."""
    root, stop = full.root, threading.Event()
    written: list[int] = []

    def write() -> None:
        with Registry.open(root) as reg:
            users, on = [reg.users.get(name).id for name in ("alice", "bob")], reg.banks.get("free")
            while not stop.is_set():
                with reg.transaction():
                    for user in users:
                        reg.items.append_items(user, [item(f"new {len(written)}")])
                    adapted(reg, users[1], on, f"stack {len(written)}".encode())
                written.append(1)
                stop.wait(0.01)  # a writer without a pause may keep a backup waiting until it gives up

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(8):
            seen = len(written)
            while len(written) < seen + 2:
                time.sleep(0.001)
            try:
                backed_up(full, tmp_path / str(number))
            except StoreBusy:
                continue
    finally:
        stop.set()
        writer.join()
    made = [path for path in tmp_path.iterdir() if path.name.isdigit()]
    assert made, "every backup was told that the store is busy"
    for path in made:
        restored(tmp_path / "other", path)
        with Registry.open(tmp_path / "other") as reg:
            assert reg.check_integrity() == []
            alice, bob = (reg.users.get(name).id for name in ("alice", "bob"))
            assert len(reg.items.recent_items(alice, "free")) == len(reg.items.recent_items(bob, "free")) > 1
            assert len(reg.stacks.of_user(bob)) == 1
        tally("backups beside a writer", "whole")


def test_a_damaged_adapter_is_in_no_backup(full: Registry, tmp_path: Path) -> None:
    next(full.root.glob("adapters/??/*")).write_bytes(b"x")
    with pytest.raises(IntegrityFault, match="is damaged"):
        backed_up(full, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_is_kept_before_it_is_migrated_and_forgetting_removes_it(root: Path) -> None:
    older_store(root)
    sql(root, "INSERT INTO users (id, name, created) VALUES (7, 'alice', '2020')")
    (root / "registry.schema3.db").write_bytes(b"of an earlier migration")
    with Registry.open(root) as reg:
        (kept,) = databases_saved_before_migration(root)
        assert kept.name == "registry.schema13.db" and kept.stat().st_mode & 0o777 == 0o600
        with sqlite3.connect(f"file:{kept}?mode=ro&immutable=1", uri=True) as conn:
            assert conn.execute("PRAGMA user_version").fetchone() == (13,)
            assert conn.execute("SELECT name FROM users").fetchall() == [("alice",)]
        conn.close()
        reg.users.forget(reg.users.get("alice").id)
        assert databases_saved_before_migration(root) == []
    assert list((root / "partial").iterdir()) == []


def test_a_migration_does_not_begin_where_nothing_can_be_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older_store(root)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("store.database_copy.sync_file", refuse)
    with pytest.raises(MtaError, match="full"):
        Registry.open(root)
    assert sql(root, "PRAGMA user_version") == [(13,)] and list((root / "partial").iterdir()) == []
