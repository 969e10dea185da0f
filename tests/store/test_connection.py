"""Opening and sharing: settings that are really on, many readers and one writer, refusals in plain words."""

from __future__ import annotations

import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mta_cli.errors import BadInput, Command, IntegrityFault, NotFound, StoreBusy
from store.registry import Registry
from tests.store.making import item, person

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="needs processes that start at once")


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("recursive_triggers", 1),
        ("secure_delete", 1),
        ("temp_store", 2),
        ("busy_timeout", 10_000),
    ],
)
def test_settings_are_on_for_every_connection(root: Path, reg: Registry, pragma: str, value: object) -> None:
    with Registry.open(root) as second:
        for registry in (reg, second):
            assert registry._db.fetch_value(f"PRAGMA {pragma}") == value


def test_a_store_without_a_log_gets_one_when_it_is_opened(root: Path, reg: Registry) -> None:
    reg.close()
    conn = sqlite3.connect(root / "registry.db")
    assert conn.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    conn.close()
    with Registry.open(root) as again:
        assert again._db.fetch_value("PRAGMA journal_mode") == "wal"


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_a_number_that_is_none_of_sqlites_is_refused(reg: Registry, number: int) -> None:
    asks: tuple[Callable[[], object], ...] = (
        lambda: reg.evaluations.get(number),
        lambda: reg.banks.get("films", number),
        lambda: reg.chats.start_chat(number, "title"),
    )
    for ask in asks:
        with pytest.raises(BadInput, match="number is too large") as caught:
            ask()
        assert str(2**63 - 1) in str(caught.value.hint)
    for there in (2**63 - 1, -(2**63)):
        with pytest.raises(NotFound):
            reg.evaluations.get(there)


def test_only_the_owner_can_read_a_new_store(root: Path, reg: Registry) -> None:
    person(reg, "alice", "words")
    assert root.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in root.glob("registry.db*"))


def test_no_store(root: Path) -> None:
    with pytest.raises(NotFound, match="There is no store at") as caught:
        Registry.open(root)
    assert caught.value.hint == Command("init")
    assert not root.exists()


def test_a_file_in_the_place_of_the_store(root: Path) -> None:
    root.write_text("hello")
    with pytest.raises(BadInput):
        Registry.open(root, create=True)
    with pytest.raises(NotFound):
        Registry.open(root)


@pytest.mark.parametrize(
    "content", [b"this is no database at all, only text", random.Random(0).randbytes(4096)], ids=("text", "noise")
)
def test_what_is_no_database(root: Path, content: bytes) -> None:
    root.mkdir()
    (root / "registry.db").write_bytes(content)
    for create in (False, True):
        with pytest.raises(IntegrityFault) as caught:
            Registry.open(root, create=create)
        assert caught.value.hint
    assert (root / "registry.db").read_bytes() == content


def test_an_emptied_database_is_not_taken_for_an_empty_store(root: Path) -> None:
    root.mkdir()
    (root / "registry.db").touch()
    with pytest.raises(IntegrityFault, match="is empty"):
        Registry.open(root)
    Registry.open(root, create=True).close()  # an `mta init` that was killed at once can be repeated
    Registry.open(root).close()


def test_a_truncated_database(root: Path) -> None:
    with Registry.open(root, create=True) as reg:
        for i in range(50):
            person(reg, f"user {i}", "words " * 100)
    content = (root / "registry.db").read_bytes()
    (root / "registry.db").write_bytes(content[: len(content) // 2])
    with pytest.raises(IntegrityFault), Registry.open(root) as reg:
        assert reg.check_integrity() != []
        reg.users.names()
        raise IntegrityFault("found by check")


def test_a_path_of_odd_characters(tmp_path: Path) -> None:
    odd = tmp_path / "a ?#%20é&mode=ro"
    with Registry.open(odd, create=True) as reg:
        person(reg, "alice", "words")
    with Registry.open(odd) as reg:
        assert reg.users.names() == ["alice"]
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]


def test_a_transaction_is_all_or_nothing(reg: Registry) -> None:
    with pytest.raises(RuntimeError), reg.transaction():
        person(reg, "alice", "words")
        raise RuntimeError("stop")
    assert reg.users.names() == []
    assert reg.check_integrity() == []


def test_an_inner_transaction_joins_the_outer_one(reg: Registry) -> None:
    with reg.transaction():
        reg.users.add("alice")
        with pytest.raises(RuntimeError), reg.transaction():
            reg.users.add("bob")
            raise RuntimeError("stop")
        with reg.transaction():
            reg.users.add("carol")
    assert reg.users.names() == ["alice", "carol"]


READER = """
import sys
from pathlib import Path
from store.registry import Registry

with Registry.open(Path(sys.argv[1])) as reg:
    assert reg.users.names() == ["alice"]
    with reg.transaction():
        reg.users.add("bob")
    assert not {"numpy", "pandas", "sqlite_utils", "filelock", "asyncio"} & set(sys.modules)
    with reg.job_lock("job"):
        assert reg.users.names() == ["alice", "bob"]

import numpy

assert numpy.frombuffer(numpy.float32([1, 2]).tobytes(), dtype="<f4").sum() == 3
"""


def test_reading_and_writing_load_only_sqlite(root: Path, reg: Registry) -> None:
    person(reg, "alice", "words")
    top = str(Path(__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", READER, str(root)], cwd=top, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr


def test_what_waits_for_a_commit_is_dropped_by_a_rollback(reg: Registry) -> None:
    done: list[str] = []
    with pytest.raises(RuntimeError), reg.transaction():
        reg._db.after_commit(lambda: done.append("lost"))
        raise RuntimeError("stop")
    with reg.transaction():
        reg._db.after_commit(lambda: done.append("kept"))
        assert done == []
    reg._db.after_commit(lambda: done.append("now"))
    assert done == ["kept", "now"]


def test_readers_see_the_last_commit_while_somebody_writes(root: Path, reg: Registry) -> None:
    person(reg, "alice", "words")
    with Registry.open(root) as other, reg.transaction():
        reg.users.add("bob")
        assert other.users.names() == ["alice"]
        assert len(other.items.recent_items(1, "free")) == 1


def test_a_second_writer_is_told_after_its_timeout(root: Path, reg: Registry) -> None:
    with Registry.open(root, timeout=0.2) as other, reg.transaction():
        reg.users.add("bob")
        begun = time.monotonic()
        with pytest.raises(StoreBusy, match=r"0\.2 s") as caught:
            other.users.add("carol")
        assert time.monotonic() - begun > 0.15
        assert caught.value.hint
    with Registry.open(root) as other:
        other.users.add("carol")
    assert reg.users.names() == ["bob", "carol"]


def test_a_second_writer_waits_its_turn(root: Path, reg: Registry) -> None:
    holding, errors = threading.Event(), list[BaseException]()

    def write() -> None:
        try:
            with Registry.open(root, timeout=20) as other:
                holding.wait(10)
                other.users.add("carol")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    with reg.transaction():
        reg.users.add("bob")
        holding.set()
        time.sleep(0.2)
    thread.join(20)
    assert errors == []
    assert reg.users.names() == ["bob", "carol"]


def _write_many(root: Path, name: str) -> None:
    with Registry.open(root, timeout=60) as reg:
        user, _ = reg.users.get_or_create_user(name)
        for i in range(20):
            reg.items.append_items(user.id, [item(f"{i}", f"words of {name} {i}")])


def _read_many(root: Path) -> None:
    with Registry.open(root, timeout=60) as reg:
        for _ in range(40):
            for user, count in reg.users.users_with_items("free"):
                assert len(reg.items.recent_items(user.id, "free")) >= count


@needs_fork
def test_processes_that_write_and_read_together_lose_nothing(root: Path) -> None:
    assert FORK is not None
    Registry.open(root, create=True).close()
    names = ["alice", "bob", "carol"]
    jobs = [FORK.Process(target=_write_many, args=(root, name)) for name in names]
    jobs += [FORK.Process(target=_read_many, args=(root,)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 5
    with Registry.open(root) as reg:
        assert [(user.name, count) for user, count in sorted(reg.users.users_with_items("free"), key=str)] != []
        assert {user.name: count for user, count in reg.users.users_with_items("free")} == dict.fromkeys(names, 20)
        assert reg.check_integrity() == []


def _create(root: Path) -> None:
    Registry.open(root, create=True, timeout=60).close()


@needs_fork
def test_processes_that_make_the_same_store_at_once(root: Path) -> None:
    assert FORK is not None
    jobs = [FORK.Process(target=_create, args=(root,)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0] * 4
    with Registry.open(root) as reg:
        assert reg.check_integrity() == []


def _write_and_die(root: Path) -> None:
    reg = Registry.open(root)
    reg.users.add("kept")
    with reg.transaction():
        reg.users.add("lost")
        os._exit(9)


@needs_fork
def test_a_writer_that_dies_loses_only_what_it_had_not_committed(root: Path, reg: Registry) -> None:
    assert FORK is not None
    job = FORK.Process(target=_write_and_die, args=(root,))
    job.start()
    job.join(60)
    assert job.exitcode == 9
    assert reg.users.names() == ["kept"]
    reg.users.add("next")
    assert reg.check_integrity() == []


def test_a_job_is_done_by_one_process_at_a_time(root: Path, reg: Registry) -> None:
    with Registry.open(root) as other:
        with reg.job_lock("bank ../x"):
            with pytest.raises(StoreBusy, match="same job") as caught, other.job_lock("bank ../x"):
                pass
            assert caught.value.hint
            with other.job_lock("another job"):
                pass
        with other.job_lock("bank ../x"):
            pass
    assert {path.parent for path in root.rglob("*.lock")} == {root / "locks"}
