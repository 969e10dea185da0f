"""`mta backup` and `mta restore`: what they ask, say and refuse."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mta_cli.pipeline.users.serve_keys import FILE_NAME, KeyFile
from store.files import AdapterFiles
from store.registry import Registry
from tests.shell import mta, mta_ok
from tests.store.making import person
from tests.store.test_schema import older_store, sql


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two users, which commands use."""
    root = tmp_path / "store"
    with Registry.open(root, create=True) as reg:
        person(reg, "alice", "a fox")
        person(reg, "bob", "the sea")
    monkeypatch.setenv("MTA_STORE", str(root))
    return root


def names(root: Path) -> list[str]:
    with Registry.open(root) as reg:
        return reg.users.names()


def test_backup_forget_restore(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.mta"
    made = mta_ok("backup", file, "--json").json()
    size = file.stat().st_size
    assert made == {"file": str(file), "bytes": size, "schema": made["schema"], "users": 2, "adapters": 0}
    assert mta_ok("user", "rm", "alice", "--yes").out.startswith("Removed alice: ")
    mta_ok("user", "add", "carol")
    ran = mta_ok("restore", file, "--yes", "--json")
    done = ran.json()
    assert (done["users"], done["replaced"], done["forgotten"], done["withdrawn"]) == (1, True, 1, 0)
    assert done["not_replayed"] is None and "now removed again: 1" in ran.err
    assert names(store) == ["bob"] and mta("doctor", "--json").json()["checks"][8]["ok"]


def test_a_key_opens_nobody_of_a_name_that_the_backup_does_not_have(store: Path, tmp_path: Path) -> None:
    """Neither a user who was added since nor one who was removed and added again."""
    file = tmp_path / "backup.mta"
    mta_ok("backup", file)
    mta_ok("user", "rm", "alice", "--yes")
    for name in ("alice", "carol"):
        mta_ok("user", "add", name)
    keys = KeyFile.read(store / FILE_NAME)
    keys.add("phone", ["alice", "bob", "carol"])
    keys.write(store / FILE_NAME)
    mta_ok("restore", file, "--yes")
    found = KeyFile.read(store / FILE_NAME)
    opened = [name for name in ("alice", "bob", "carol") if found.allows(found.keys[0], name)]
    assert names(store) == opened == ["bob"]


def test_a_restore_that_fails_leaves_keys_and_checkpoints(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backup.mta"
    mta_ok("backup", file)
    mta_ok("user", "add", "carol")
    keys = KeyFile.read(store / FILE_NAME)
    keys.add("phone", ["carol"])
    keys.write(store / FILE_NAME)
    AdapterFiles(store).write_checkpoint("training", b"checkpoint")
    before = (store / FILE_NAME).read_bytes()

    def fail(*_: object) -> None:
        assert (store / FILE_NAME).read_bytes() != before, "a kill from here on leaves no key too many"
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr("store.restore.replace_database", fail)
    assert mta("restore", file, "--yes").code == 5
    assert (store / FILE_NAME).read_bytes() == before and names(store) == ["alice", "bob", "carol"]
    assert AdapterFiles(store).read_checkpoint("training") == b"checkpoint"


def test_what_is_replaced_is_asked_for(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.mta"
    mta_ok("backup", file)
    content = file.read_bytes()
    assert (ran := mta("backup", file)).code == 2 and "--yes" in ran.err and file.read_bytes() == content
    mta_ok("backup", file, "--yes")
    mta_ok("user", "add", "carol")
    assert (ran := mta("restore", file)).code == 2 and "--yes" in ran.err
    assert names(store) == ["alice", "bob", "carol"]


def test_a_dry_run_verifies_and_changes_nothing(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.mta"
    mta_ok("backup", file)
    mta_ok("user", "rm", "alice", "--yes")
    before = (store / "registry.db").read_bytes()
    plan = mta_ok("restore", file, "--dry-run", "--json").json()
    assert {line["name"]: line["value"] for line in plan["plan"]}["users"] == "2"
    assert (store / "registry.db").read_bytes() == before
    file.write_bytes(file.read_bytes()[:-20_000])
    assert mta("restore", file, "--dry-run").code == 5
    assert mta("restore", tmp_path / "nothing").code == 3
    file.write_text("words")
    assert mta("restore", file, "--yes").code == 4


def test_a_store_that_is_gone_is_restored_and_what_is_not_known_is_said(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.mta"
    mta_ok("backup", file)
    (store / "registry.db").unlink()
    ran = mta_ok("restore", file, "--json")
    assert "no store" in ran.json()["not_replayed"] and ran.json()["replaced"] is False
    assert "mta user rm" in ran.err and "server keys" in ran.err and names(store) == ["alice", "bob"]


def test_a_store_that_cannot_be_read_is_replaced_when_that_is_agreed(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.mta"
    mta_ok("backup", file)
    (store / "registry.db").write_bytes(b"not a database" * 999)
    assert mta("restore", file).code == 2
    assert "cannot be read" in mta_ok("restore", file, "--yes", "--json").json()["not_replayed"]
    assert names(store) == ["alice", "bob"]


def test_places_where_a_backup_cannot_be(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    places = (store / "backup.mta", store / "adapters" / "x", tmp_path / "link" / "x", tmp_path, tmp_path / "no" / "x")
    for place in places:
        ran = mta("backup", place)
        assert ran.code == 4 and "hint" in ran.err, place
    assert mta("--store", tmp_path / "none", "backup", tmp_path / "x").code == 3


def test_removing_a_user_says_that_the_copy_from_before_a_migration_goes(store: Path) -> None:
    older = store.parent / "older"
    older_store(older)
    sql(older, "INSERT INTO users (id, name, created) VALUES (7, 'alice', '2020')")
    mta_ok("--store", older, "user", "list")
    assert (older / "registry.schema13.db").exists()
    assert "registry.schema13.db" in mta_ok("--store", older, "user", "rm", "alice", "--yes").err
    assert not (older / "registry.schema13.db").exists()
    with sqlite3.connect(older / "registry.db") as conn:
        assert conn.execute("SELECT count(*) FROM tombstones WHERE erased").fetchone() == (1,)
    conn.close()
