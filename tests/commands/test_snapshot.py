"""`mta snapshot` and `mta pull`: what they say and refuse."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from store.registry import Registry
from store.snapshots.manifest import hash_name, read_key
from tests.shell import mta, mta_ok
from tests.store.making import adapted, bank, item, person


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two users and a bank of labels, which commands use."""
    root = tmp_path / "store"
    with Registry.open(root, create=True) as reg:
        alice, bob = person(reg, "alice", "a fox"), person(reg, "bob", "the sea")
        label = BUILTIN_TASKS["lamp-2"].labels[0]
        reg.items.append_items(
            bob, [item("a", "a film", f" {label} ", task="lamp-2"), item("b", "film", task="lamp-2")]
        )
        adapted(reg, bob, bank(reg, [alice], task="lamp-2"), task="lamp-2")
    monkeypatch.setenv("MTA_STORE", str(root))
    return root


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key file."""
    path = tmp_path / "key"
    path.write_bytes(os.urandom(32).hex().encode() + b"\n")
    return path


def names(root: Path) -> list[str]:
    with Registry.open(root) as reg:
        return reg.users.names()


def test_snapshot_pull_forget_snapshot_pull(store: Path, key: Path, tmp_path: Path) -> None:
    fleet, node = tmp_path / "fleet", tmp_path / "node"
    made = mta_ok("snapshot", fleet, "--key", key, "--json").json()
    size = sum(path.stat().st_size for path in fleet.glob("objects/??/*"))
    assert made == {
        "to": str(fleet),
        "created": made["created"],
        "schema": made["schema"],
        "tasks": None,
        "users": 2,
        "banks": 1,
        "adapters": 3,
        "bytes": size,
        "hashed_names": False,
        "written": 4,
        "written_bytes": size,
        "removed": 0,
        "signed": True,
    }
    done = mta_ok("--store", node, "pull", fleet, "--key", key, "--json").json()
    shared = {name: made[name] for name in ("created", "schema", "tasks", "users", "banks", "adapters", "bytes")}
    assert done == shared | {
        "store": str(node),
        "from": str(fleet),
        "hashed_names": False,
        "fetched": 4,
        "fetched_bytes": size,
        "removed": 0,
        "signature": "verified",
    }
    assert mta_ok("--store", node, "snapshot", tmp_path / "again").code == 0, "a copy can be published too"
    mta_ok("user", "rm", "bob", "--yes")
    ran = mta_ok("snapshot", fleet, "--key", key)
    assert "1 users and 2 adapters" in ran.out and "1 files written" in ran.out and "2 removed" in ran.out
    assert "1 files fetched" in mta_ok("--store", node, "pull", fleet, "--key", key).out
    assert (
        names(node) == ["alice"] and mta_ok("--store", node, "user", "list", "--json").json()[0]["status"] == "anchor"
    )


def test_lists_of_a_copy_show_what_it_has(store: Path, tmp_path: Path) -> None:
    mta_ok("snapshot", tmp_path / "fleet")
    node = tmp_path / "node"
    mta_ok("--store", node, "pull", tmp_path / "fleet")
    (bob,) = mta_ok("--store", node, "user", "list", "--task", "lamp-2", "--json").json()
    assert (bob["name"], bob["items"], bob["status"], bob["stack_bytes"]) == ("bob", 1, "adapted", 5)
    assert "film" not in mta_ok("--store", node, "user", "history", "bob").out
    assert mta_ok("--store", node, "user", "show", "bob").code == 0
    assert mta("--store", node, "doctor", "--json").json()["checks"][8]["ok"]
    ran = mta("--store", node, "user", "add", "carol")
    assert ran.code == 4 and "copy of a snapshot" in ran.err and f"mta --store {node} pull" in ran.err


def test_names_are_hashed_with_the_key(store: Path, key: Path, tmp_path: Path) -> None:
    fleet, node = tmp_path / "fleet", tmp_path / "node"
    assert mta_ok("snapshot", fleet, "--hash-names", "--key", key, "--json").json()["hashed_names"]
    mta_ok("--store", node, "pull", fleet, "--key", key)
    assert names(node) == sorted(hash_name(read_key(key), name) for name in ("alice", "bob"))
    ran = mta("snapshot", fleet, "--hash-names")
    assert ran.code == 2 and "--key" in ran.err


def test_a_task_alone(store: Path, tmp_path: Path) -> None:
    assert mta_ok("snapshot", tmp_path / "fleet", "--task", "free", "--json").json()["banks"] == 0
    made = mta_ok("snapshot", tmp_path / "fleet", "--task", "lamp-2", "--task", "lamp-2", "--json").json()
    assert (made["tasks"], made["banks"]) == (["lamp-2"], 1)
    assert mta("snapshot", tmp_path / "fleet", "--task", "nothing").code == 3


def test_a_signature_is_asked_for_and_missed(store: Path, key: Path, tmp_path: Path) -> None:
    fleet, node, other = tmp_path / "fleet", tmp_path / "node", tmp_path / "other"
    other.write_bytes(b"another key of enough bytes")
    assert "not signed" in mta_ok("snapshot", fleet).err
    assert "not signed" in mta_ok("--store", node, "pull", fleet).err
    ran = mta("--store", node, "pull", fleet, "--key", key)
    assert ran.code == 5 and "is not signed" in ran.err
    mta_ok("snapshot", fleet, "--key", key)
    assert (ran := mta("--store", node, "pull", fleet, "--key", other)).code == 5 and "this key" in ran.err
    ran = mta_ok("--store", node, "pull", fleet, "--json")
    assert ran.json()["signature"] == "not verified" and "--key FILE verifies" in ran.err
    assert mta("--store", node, "pull", fleet, "--key", tmp_path / "none").code == 3
    mta_ok("--store", node, "pull", fleet, "--key", key)
    mta_ok("snapshot", fleet)
    ran = mta("--store", node, "pull", fleet)
    assert ran.code == 5 and "--trust-unsigned" in ran.err
    assert mta_ok("--store", node, "pull", fleet, "--trust-unsigned", "--json").json()["signature"] == "none"


def test_a_dry_run_says_what_it_would_do(store: Path, key: Path, tmp_path: Path) -> None:
    fleet, node = tmp_path / "fleet", tmp_path / "node"
    plan = mta_ok("snapshot", fleet, "--key", key, "--dry-run", "--json").json()["plan"]
    lines = {line["name"]: line["value"] for line in plan}
    assert lines["to write"].startswith("4 files") and lines["signed"] == "yes" and not fleet.exists()
    mta_ok("snapshot", fleet, "--key", key)
    plan = mta_ok("--store", node, "pull", fleet, "--key", key, "--dry-run", "--json").json()["plan"]
    lines = {line["name"]: line["value"] for line in plan}
    assert lines["to fetch"].startswith("4 files") and lines["signature"] == "verified" and not node.exists()


def test_places_that_cannot_be_used(store: Path, tmp_path: Path) -> None:
    assert (ran := mta("snapshot", store / "fleet")).code == 4 and "is inside the store" in ran.err
    (tmp_path / "file").touch()
    assert (ran := mta("snapshot", tmp_path / "file")).code == 4 and "is a file" in ran.err
    assert (ran := mta("snapshot", "nowhere://bucket")).code == 2 and "not the address" in ran.err
    assert (ran := mta("pull", tmp_path / "nothing")).code == 3 and "no snapshot" in ran.err
    mta_ok("snapshot", tmp_path / "fleet")
    assert (ran := mta("pull", tmp_path / "fleet")).code == 4 and "not a copy of a snapshot" in ran.err
    assert names(store) == ["alice", "bob"]
    assert mta("--store", tmp_path / "none", "snapshot", tmp_path / "fleet").code == 3
