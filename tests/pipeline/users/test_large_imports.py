"""Large files: bounded memory, short transactions, and an import that is stopped goes on where it was."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, MtaError, StoreBusy, UserInUse, UsersChanged
from mta_cli.events import Event, JobProgress, Note
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.users import import_file as importing
from mta_cli.pipeline.users.import_file import import_file, import_source
from store.registry import Registry
from tests.pipeline.histories import imported, rows, write
from tests.pipeline.town import finish

BATCH = 10


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def reg(root: Path) -> Iterator[Registry]:
    with Registry.open(root, create=True, timeout=0.2) as registry:
        yield registry


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is a transaction of its own."""
    monkeypatch.setattr(importing, "BATCH_RECORDS", BATCH)
    monkeypatch.setattr(importing, "MAX_WHOLE_RECORDS", BATCH)
    monkeypatch.setattr(importing, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(importing, "PAUSE_SECONDS", 0.0)


def history(path: Path, count: int = 35) -> Path:
    """A file of four users with records that have no id."""
    return write(path, [row | {"user": f"user {n % 4}"} for n, row in enumerate(rows(count=count))])


def contents(reg: Registry) -> list[tuple[Any, ...]]:
    """All users and items with their numbers."""
    users = [reg.users.get(name) for name in reg.users.names()]
    return [(user.id, user.name, reg.items.recent_items(user.id, "free")) for user in users]


def test_memory_does_not_grow_with_the_file(reg: Registry, tmp_path: Path) -> None:
    def peak(name: str, count: int) -> int:
        path = history(tmp_path / name, count)
        tracemalloc.start()
        try:
            for _ in import_file(reg, "jsonl", path):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak("first.jsonl", 100)  # loads modules
    assert peak("small.jsonl", 3_000) < 3_000_000
    assert peak("large.jsonl", 20_000) < 3_000_000


@pytest.mark.usefixtures("small_batches")
def test_others_write_between_the_batches(reg: Registry, root: Path, tmp_path: Path) -> None:
    written = 0
    with Registry.open(root, timeout=0) as other:
        for event in import_file(reg, "jsonl", history(tmp_path / "a.jsonl")):
            if isinstance(event, JobProgress):
                written += 1
                other.users.add(f"another {written}")
    assert written == 4 and len(reg.users.names()) == 8


def test_a_transaction_lasts_about_as_long_as_it_should(
    reg: Registry, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_RECORDS", BATCH)
    monkeypatch.setattr(importing, "MAX_WHOLE_RECORDS", BATCH)
    now, paused = [0.0], list[float]()
    monkeypatch.setattr(importing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(importing.time, "sleep", paused.append)
    plain = reg.items.bulk_append

    def slow(*rows: Any) -> tuple[int, int, int, int]:
        now[0] += 0.3  # so that two batches fill a turn of 0.4 seconds
        return plain(*rows)

    monkeypatch.setattr(reg.items, "bulk_append", slow)
    events = list(import_file(reg, "jsonl", history(tmp_path / "a.jsonl", 55)))
    assert [event.done for event in events if isinstance(event, JobProgress)] == [20, 40, 55]
    assert paused == [importing.PAUSE_SECONDS] * 2


@pytest.mark.usefixtures("small_batches")
def test_a_file_of_one_batch_is_one_transaction(reg: Registry, root: Path, tmp_path: Path) -> None:
    with Registry.open(root, timeout=0) as other:
        for event in import_file(reg, "jsonl", history(tmp_path / "a.jsonl", BATCH)):
            if isinstance(event, JobProgress):
                assert other.users.names() == []
                with pytest.raises(StoreBusy):
                    other.users.add("another")


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("fail_at", range(4))
def test_an_import_that_failed_goes_on(
    reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    path, calls = history(tmp_path / "a.jsonl"), 0
    with Registry.open(tmp_path / "whole", create=True) as other:
        imported(other, "jsonl", path)
        expected = contents(other)
    plain = reg.items.bulk_append

    def failing(*rows: Any) -> tuple[int, int, int, int]:
        nonlocal calls
        calls += 1
        if calls == fail_at + 1:
            raise StoreBusy("Another process has been writing.")
        return plain(*rows)

    with monkeypatch.context() as patch:
        patch.setattr(reg.items, "bulk_append", failing)
        seen, error = until_error(import_file(reg, "jsonl", path))
    assert isinstance(error, StoreBusy)
    said = [event.text for event in seen if isinstance(event, Note)]
    stored = f"{BATCH * fail_at} of 35 records are stored; run the same command again to add the others"
    assert said == ([stored] if fail_at else [])
    assert imported(reg, "jsonl", path)["items_unchanged"] == BATCH * fail_at
    assert contents(reg) == expected


def until_error(events: Iterator[Event]) -> tuple[list[Event], MtaError | None]:
    """The events up to an error, and the error."""
    seen = list[Event]()
    try:
        seen.extend(iter(events))
    except MtaError as error:
        return seen, error
    return seen, None


@pytest.mark.usefixtures("small_batches")
def test_the_last_line_at_fault_leaves_nothing(reg: Registry, root: Path, tmp_path: Path) -> None:
    path = history(tmp_path / "a.jsonl")
    path.write_text(path.read_text(encoding="utf-8") + '{"user": "ann"}\n', encoding="utf-8")
    with pytest.raises(BadInput):
        imported(reg, "jsonl", path)
    assert reg.users.names() == []
    assert list((root / "partial").iterdir()) == [], "nothing of the file stays beside the store either"


@pytest.mark.usefixtures("small_batches")
def test_another_import_between_the_batches_holds_out_nothing_of_this_one(
    reg: Registry, root: Path, tmp_path: Path
) -> None:
    path = history(tmp_path / "a.jsonl")
    job = import_file(reg, "jsonl", path)
    while not isinstance(next(job), JobProgress):
        pass
    with Registry.open(root) as other:
        finish(import_source(other, ImportSource("jsonl", path, hold_out=3)))
    seen, error = until_error(job)
    assert isinstance(error, UsersChanged) and f"{BATCH} of 35 records are stored" in str(seen)
    imported(reg, "jsonl", path)
    users = [reg.users.get(name).id for name in reg.users.names()]
    held = [query.key for user in users for query in reg.items.queries(user, "free")]
    kept = [item.key for user in users for item in reg.items.recent_items(user, "free")]
    assert len(held) == 12 and len(held + kept) == len({*held, *kept}) == 35


@pytest.mark.usefixtures("small_batches")
def test_nobody_is_removed_in_the_middle(reg: Registry, root: Path, tmp_path: Path) -> None:
    with Registry.open(root, timeout=0.2) as other:
        for event in import_file(reg, "jsonl", history(tmp_path / "a.jsonl")):
            if isinstance(event, JobProgress):
                with pytest.raises(UserInUse, match=r"import of a\.jsonl is using user 1's items"):
                    other.users.forget(other.users.get("user 1").id)
        other.users.forget(other.users.get("user 1").id)


@pytest.mark.usefixtures("small_batches")
def test_consent_is_refused_before_anything_is_written(reg: Registry, root: Path, tmp_path: Path) -> None:
    ann = reg.users.add("ann")
    path = write(tmp_path / "a.jsonl", rows(count=35))
    with Registry.open(root) as other, other.hold_users("bank build", [ann.id]), pytest.raises(UserInUse):
        imported(reg, "jsonl", path, can_anchor=False)
    assert reg.users.tasks_of_user(ann.id) == []
