"""Backups: whole, verified, of one moment. Restores: at once, and no forgotten user comes back."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound, StoreBusy
from store import backup
from store.backup import Manifest, create_backup
from store.database_copy import saved_databases
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


def dump(root: Path) -> list[str]:
    """All that a store says, in SQL, and its adapter files."""
    with Registry.open(root) as reg:
        assert reg.check_integrity() == []
    with sqlite3.connect(root / "registry.db") as conn:
        rows = [line for line in conn.iterdump() if not line.startswith('INSERT INTO "items_fts_')]
    conn.close()
    return rows + sorted(path.name for path in root.glob("adapters/??/*"))


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


def test_a_backup_is_one_zip_of_verified_members_for_the_owner_alone(full: Registry, tmp_path: Path) -> None:
    path = tmp_path / "backup.mta"
    manifest = backed_up(full, path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (manifest.schema, manifest.counts["users"], len(manifest.members)) == (SCHEMA_VERSION, 2, 4)
    with zipfile.ZipFile(path) as found:
        assert sorted(found.namelist()) == sorted([*manifest.members, "manifest.json"])
        for name, member in manifest.members.items():
            content = found.read(name)
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (member.sha256, member.bytes)
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
    with zipfile.ZipFile(path) as found:
        content = found.read("registry.db")
    assert b"heron" not in content and b"alice" not in content


def test_a_store_of_mostly_free_pages_can_be_restored(
    full: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "MIN_EXPANDED_BYTES", 2**20)
    full.tasks.save_task("large", "x" * 20 * 2**20)
    full._db.execute_write("DELETE FROM tasks WHERE name = 'large'")
    path = tmp_path / "backup.mta"
    assert backed_up(full, path).total_bytes < 2**20
    with zipfile.ZipFile(path) as found:
        assert found.read("registry.db")[18:20] == b"\2\2", "with SQLite's log, as every store"
    full.close()
    before = sorted(dump(full.root))
    restored(full.root, path)
    assert sorted(dump(full.root)) == before


def test_a_disk_that_fills_while_free_pages_are_dropped(
    full: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Path) -> None:
        with sqlite3.connect(":memory:") as conn:
            conn.execute("PRAGMA max_page_count = 1")
            conn.execute("CREATE TABLE one (x)")

    monkeypatch.setattr(backup, "purge_copy", fill)
    with pytest.raises(BadInput, match="disk is full"):
        backed_up(full, tmp_path / "backup.mta")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_of_the_backup_is_not_taken_for_the_stores(
    full: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def small(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        conn: sqlite3.Connection = connect(*args, **kwargs)
        conn.execute("PRAGMA max_page_count = 1")
        return conn

    monkeypatch.setattr("store.database_copy.sqlite3.connect", small)
    with pytest.raises(BadInput, match=r"backup\.mta was not written"):
        backed_up(full, tmp_path / "backup.mta")


def test_a_restore_needs_room_for_the_database_twice_where_it_replaces_one(
    archive: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(archive) as found:
        unpacked = sum(info.file_size for info in found.infolist() if info.filename != "manifest.json")
    usage = shutil.disk_usage(root)._replace(free=unpacked + 1)
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


@pytest.mark.parametrize("keep", [0, 1, 3, 100, -1, -30, -2000])
def test_a_truncated_archive_is_named(archive: Path, root: Path, keep: int) -> None:
    before = dump(root)
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises((IntegrityFault, BadInput)) as caught, stage_restore(root, 1.0) as staged:
        list(staged.unpack(archive))
    assert caught.value.hint and dump(root) == before
    assert list((root / "partial").iterdir()) == []


def rewrite(archive: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> None:
    """Write the archive again after `change` of its manifest and members."""
    with zipfile.ZipFile(archive) as found:
        members = {name: found.read(name) for name in found.namelist() if name != "manifest.json"}
        manifest = json.loads(found.read("manifest.json"))
    change(manifest, members)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(name, content)
        made.writestr("manifest.json", json.dumps(manifest))


def add_member(name: str) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def change(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        members[name] = b"x"
        manifest["members"][name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}

    return change


def set_database(change: Callable[[sqlite3.Connection], object]) -> Callable[[dict[str, Any], dict[str, bytes]], None]:
    def edit(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        conn = sqlite3.connect(":memory:", isolation_level=None)
        conn.deserialize(members["registry.db"].replace(b"\2\2", b"\1\1", 1))  # memory knows no write-ahead log
        conn.execute("PRAGMA writable_schema = ON")
        change(conn)
        content = conn.serialize()
        conn.close()
        members["registry.db"] = content
        manifest["members"]["registry.db"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    return edit


def hide_trigger(db: sqlite3.Connection, kind: str = "trigger", name: str = "sqlite_t", table: str = "users") -> None:
    trigger = "CREATE TRIGGER sqlite_t AFTER DELETE ON users BEGIN SELECT 1; END"
    db.execute("INSERT INTO sqlite_master VALUES (?, ?, ?, 0, ?)", (kind, name, table, trigger))


HOSTILE = {
    "a path that climbs": add_member("../outside"),
    "an absolute path": add_member("/tmp/outside"),
    "a path of Windows": add_member("adapters\\aa\\..\\..\\x"),
    "a settings file": add_member("mta.toml"),
    "an adapter in another's place": add_member(f"adapters/aa/{'a' * 64}.safetensors"),
    "a path that climbs from adapters": add_member(f"adapters/../{'a' * 62}.safetensors"),
    "a member that the manifest does not name": lambda manifest, members: members.update(more=b"x"),
    "a member that is not there": lambda manifest, members: members.pop(next(n for n in members if "adapters" in n)),
    "no database": lambda manifest, members: (members.pop("registry.db"), manifest["members"].pop("registry.db")),
    "another digest": lambda manifest, members: members.update({"registry.db": members["registry.db"][:-1] + b"?"}),
    "another size": lambda manifest, members: manifest["members"]["registry.db"].update(bytes=1),
    "an absurd size": lambda manifest, members: manifest["members"]["registry.db"].update(bytes=10**30),
    "members that are none": lambda manifest, members: manifest.update(members=[1, 2]),
    "no format": lambda manifest, members: manifest.pop("format"),
    "a version that is no number": lambda manifest, members: manifest.update(schema="8"),
    "another schema than it says": lambda manifest, members: manifest.update(schema=SCHEMA_VERSION - 1),
    "a newer schema": lambda manifest, members: manifest.update(schema=SCHEMA_VERSION + 1),
    "a newer format": lambda manifest, members: manifest.update(version=2),
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
    rewrite(archive, HOSTILE[name])
    with pytest.raises(IntegrityFault) as caught, stage_restore(root, 1.0) as staged:
        list(staged.unpack(archive))
    assert caught.value.hint and str(archive) in caught.value.message
    if name.startswith("a newer"):
        assert "mta" in caught.value.hint
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == files
    assert dump(root) == before
    tally("archives that are not as a backup is", "refused, the store untouched")


def test_an_archive_that_unpacks_to_far_more_is_refused(
    archive: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "MIN_EXPANDED_BYTES", 2**20)

    def bomb(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        content = bytes(8 * 2**20)
        members["registry.db"] = content
        manifest["members"]["registry.db"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}

    rewrite(archive, bomb)
    with pytest.raises(IntegrityFault, match="unpack to"), stage_restore(root, 1.0) as staged:
        list(staged.unpack(archive))


def test_what_is_no_archive(root: Path, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("words")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as made:
        made.writestr("a", "b")
    for name, kind in (("words", BadInput), ("other.zip", BadInput), ("nothing", NotFound)):
        with pytest.raises(kind), stage_restore(root, 1.0) as staged:
            list(staged.unpack(tmp_path / name))
    assert not root.exists()


def test_white_space_of_another_version_in_the_schema_is_no_fault(archive: Path, root: Path) -> None:
    index = "UPDATE sqlite_master SET sql = sql || char(10) WHERE name = 'eval_banks_on_bank'"
    rewrite(archive, set_database(lambda db: db.execute(index)))
    assert restored(root, archive).users == 2


def test_an_older_backup_is_migrated(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older_store(root)
    sql(root, "INSERT INTO users (id, name, created) VALUES (7, 'alice', '2020')")
    sql(root, "PRAGMA wal_checkpoint(TRUNCATE)")
    content = (root / "registry.db").read_bytes()
    member = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = {"format": "mta backup", "version": 1, "created": "2020", "program": "0", "schema": 13, "counts": {}}
    with zipfile.ZipFile(tmp_path / "old", "w") as made:
        made.writestr("registry.db", content)
        made.writestr("manifest.json", json.dumps({**manifest, "members": {"registry.db": member}}))
    done = restored(root, tmp_path / "old")
    assert done.replaced.problem == "" and done.replaced.users == 1
    with Registry.open(root) as reg:
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
        (kept,) = saved_databases(root)
        assert kept.name == "registry.schema13.db" and kept.stat().st_mode & 0o777 == 0o600
        with sqlite3.connect(f"file:{kept}?mode=ro&immutable=1", uri=True) as conn:
            assert conn.execute("PRAGMA user_version").fetchone() == (13,)
            assert conn.execute("SELECT name FROM users").fetchall() == [("alice",)]
        conn.close()
        reg.users.forget(reg.users.get("alice").id)
        assert saved_databases(root) == []
    assert list((root / "partial").iterdir()) == []


def test_a_migration_does_not_begin_where_nothing_can_be_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older_store(root)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("store.database_copy.sync_file", refuse)
    with pytest.raises(MtaError, match="full"):
        Registry.open(root)
    assert sql(root, "PRAGMA user_version") == [(13,)] and list((root / "partial").iterdir()) == []
