"""What the store cannot do, said in plain words: no right to write, a full disk, damage, a poor SQLite."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mta_cli.errors import BadInput, IntegrityFault, MtaError, StoreBusy
from store import connection
from store.registry import Registry
from tests.store.making import item, person

FORK = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
needs_fork = pytest.mark.skipif(FORK is None, reason="needs processes that start at once")


def as_nobody(act: Callable[[], object]) -> str:
    """What `act` raises in a process without any rights of its own: "TypeName: message"."""
    assert FORK is not None
    reader, writer = FORK.Pipe(duplex=False)

    def run() -> None:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            act()
            writer.send("nothing")
        except MtaError as error:
            writer.send(f"{type(error).__name__}: {error}")
        except BaseException as error:
            writer.send(f"unexpected {type(error).__name__}: {error}")

    job = FORK.Process(target=run)
    job.start()
    writer.close()
    said: str = reader.recv()
    job.join(60)
    return said


@pytest.fixture
def locked() -> Iterator[Path]:
    """A store that all users may read and only the superuser may write."""
    above = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    root = above / "store"
    with Registry.open(root, create=True) as reg:
        person(reg, "alice", "words")
    (root / "registry.db").chmod(0o444)
    for folder in (root, above):
        folder.chmod(0o555)
    try:
        if as_nobody((root / "registry.db").read_bytes) != "nothing":
            pytest.skip("the folder for temporary files is closed to others")
        yield root
    finally:
        for folder in (above, root):
            folder.chmod(0o700)
        shutil.rmtree(above)


@needs_fork
def test_a_read_only_store_is_read_and_says_so_when_written(locked: Path) -> None:
    def read() -> None:
        with Registry.open(locked) as reg:
            assert reg.users.names() == ["alice"]
            assert [found.key for found in reg.items.search_items(1, "free", "words", limit=1)] == ["0"]
            assert reg.check_integrity() == []

    def write() -> None:
        with Registry.open(locked) as reg:
            reg.users.add("bob")

    def lock() -> None:
        with Registry.open(locked) as reg, reg.job_lock("job"):
            pass

    assert as_nobody(read) == "nothing"
    refusal = f"BadInput: The store at {locked} cannot be written."
    assert as_nobody(write) == refusal
    assert as_nobody(lock).startswith(f"BadInput: {locked / 'locks'}{os.sep}")
    assert as_nobody(lock).endswith("cannot be written: Permission denied.")


@needs_fork
def test_a_store_cannot_be_made_where_nothing_may_be_written(locked: Path) -> None:
    said = as_nobody(lambda: Registry.open(locked / "inner", create=True).close())
    assert said.startswith("BadInput: A store cannot be made at")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("SQLITE_FULL", BadInput, "disk is full"),
        ("SQLITE_READONLY_DBMOVED", BadInput, "cannot be written"),
        ("SQLITE_BUSY_SNAPSHOT", StoreBusy, "writing"),
        ("SQLITE_CORRUPT", IntegrityFault, "cannot be used"),
        ("SQLITE_TOOBIG", BadInput, "longer than"),
        ("SQLITE_IOERR_WRITE", IntegrityFault, "The disk failed"),
    ],
)
def test_errors_of_sqlite_in_our_words(tmp_path: Path, name: str, kind: type[MtaError], words: str) -> None:
    error = sqlite3.OperationalError("bare words of sqlite")
    error.sqlite_errorname = name
    found = connection._to_mta_error(tmp_path, 1.0, error)
    assert type(found) is kind
    assert words in found.message


def test_a_full_disk_while_rows_are_written(reg: Registry) -> None:
    pages = reg._db.fetch_value("PRAGMA page_count")
    reg._db.fetch_dicts(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(BadInput, match="disk is full"):
        person(reg, "alice", *(f"{i} " + "words " * 500 for i in range(100)))
    assert len(reg.items.recent_items(1, "free")) == 0
    assert reg.check_integrity() == []


def test_text_that_is_no_text_is_refused(reg: Registry) -> None:
    user = reg.users.add("alice")
    with pytest.raises(BadInput, match="surrogate"):
        reg.items.append_items(user.id, [item("k", "half \ud800")])
    assert len(reg.items.recent_items(user.id, "free")) == 0


def test_a_reference_to_nobody_is_refused(reg: Registry) -> None:
    with pytest.raises(IntegrityFault, match="contradict the data"):
        reg.items.append_items(12345, [item("k")])


def test_an_old_or_poor_sqlite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    connection.check_sqlite.cache_clear()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 7, 0))
    with pytest.raises(BadInput, match="SQLite"):
        connection.check_sqlite()
    monkeypatch.undo()

    class Poor(sqlite3.Connection):
        def execute(self, *_: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("no such module: fts5")

    plain = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path: plain(path, factory=Poor))
    with pytest.raises(BadInput, match="FTS5"):
        connection.check_sqlite()
    monkeypatch.undo()
    connection.check_sqlite()


def test_a_log_that_sqlite_cannot_keep_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoLog(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            asked = "SELECT 'delete'" if "journal_mode" in statement else statement
            return super().execute(asked, *values)  # type: ignore[arg-type]

    plain = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: plain(*a, **k, factory=NoLog))
    with pytest.raises(BadInput, match="log mode is delete"):
        Registry.open(root, create=True)


def test_a_lock_folder_that_cannot_be_made(root: Path, reg: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BadInput, match="cannot be written"), reg.job_lock("job"):
        pass


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        (errno.ENOSPC, BadInput, "free some space"),
        (errno.EDQUOT, BadInput, "free some space"),
        (errno.EROFS, BadInput, "file system is read-only"),
        (errno.EACCES, BadInput, "check the permissions"),
        (errno.EIO, IntegrityFault, "check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_lock_that_cannot_be_made_says_what_where_and_why(
    reg: Registry, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[MtaError], hint: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    shutil.rmtree(reg.root / "locks")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(kind) as caught, reg.job_lock("adapt lamp-2"):
        pytest.fail("it holds nothing")
    monkeypatch.undo()
    assert str(reg.root / "locks") in caught.value.message and os.strerror(code) in caught.value.message
    assert hint in str(caught.value.hint)
    with reg.job_lock("adapt lamp-2"):
        assert reg.check_integrity() == []
