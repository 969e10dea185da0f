"""Records between a file and the store: kept in order, once an id, in a file of their own that does not stay."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mta_cli.errors import BadInput
from store.records import NewItem
from store.registry import Registry
from store.staged_records import FirstUse, StagedRecord, StagedRecords


def record(key: str, user: str = "ann", *, number: int = 1, held_out: bool = False, text: str = "i") -> StagedRecord:
    return StagedRecord(user, held_out, NewItem(key, "free", text, "o", None), number, None)


@pytest.fixture
def staged() -> StagedRecords:
    return StagedRecords(sqlite3.connect(":memory:", isolation_level=None))


def test_an_id_is_kept_once_a_user_a_task_and_a_kind(staged: StagedRecords) -> None:
    kept = [record("1"), record("1", "bob"), record("1", held_out=True), record("2")]
    assert [staged.add(each) for each in kept] == [None] * 4
    assert staged.add(record("1", number=5)) == FirstUse(1, same=True)
    assert staged.add(record("1", number=6, text="other")) == FirstUse(1, same=False)
    assert [each._replace(id=0) for each in staged] == kept


def test_batches_are_bounded_by_records_and_by_characters(staged: StagedRecords) -> None:
    for number, size in enumerate([1, 1, 1, 50, 1, 9, 9, 1]):
        staged.add(record(str(number), text="x" * size))
    assert [[each.item.key for each in batch] for batch in staged.batches(2, 20)] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4", "5"],
        ["6", "7"],
    ]


def test_times_are_set_while_all_are_read(staged: StagedRecords) -> None:
    for number in range(3):
        staged.add(record(str(number)))
    for each in staged:
        staged.set_time(each.id, "2026")
    assert [each.item.time for each in staged] == ["2026"] * 3


def test_leaked_queries_are_those_of_the_same_user_with_the_same_answer(staged: StagedRecords) -> None:
    for each in (
        record("1", text="said"),
        record("q", text="said", held_out=True),
        record("r", text="asked", held_out=True),
        record("q", "bob", text="said", held_out=True),
    ):
        staged.add(each)
    assert staged.count_leaked_queries() == 1


def test_the_file_is_private_and_does_not_stay(root: Path) -> None:
    with Registry.open(root, create=True) as reg:
        with reg.stage_records() as staged:
            for number in range(30_000):  # more than the cache holds
                staged.add(record(str(number), text="the words of a user, " * 40))
            (path,) = (root / "partial").iterdir()
            assert path.stat().st_size > 1_000_000 and path.stat().st_mode & 0o077 == 0
            assert reg.check_integrity() == []
        assert list((root / "partial").iterdir()) == []


def test_a_store_that_cannot_be_written_says_so(root: Path) -> None:
    with Registry.open(root, create=True) as reg:
        (root / "partial").write_text("no folder")
        with pytest.raises(BadInput), reg.stage_records():
            pass


def timed(key: str, time: str | None, user: str = "ann", text: str | None = None) -> StagedRecord:
    return StagedRecord(user, False, NewItem(key, "free", text or key, "o", time), 1, None)


def held(staged: StagedRecords) -> list[tuple[str, str]]:
    return [(each.user, each.item.key) for each in staged if each.held_out]


def test_the_last_items_by_time_are_held_out(staged: StagedRecords) -> None:
    for key, day in (("a", 3), ("b", 1), ("c", 5), ("d", 2), ("e", 4)):
        staged.add(timed(key, f"2026-01-0{day}"))
    assert staged.hold_out(2, 3, 0).queries == 2
    assert held(staged) == [("ann", "c"), ("ann", "e")]


def test_without_times_the_keys_and_the_seed_draw(staged: StagedRecords) -> None:
    keys = [f"k{n}" for n in range(20)]

    def draw(order: list[str], seed: int) -> set[tuple[str, str]]:
        records = StagedRecords(sqlite3.connect(":memory:", isolation_level=None))
        for key in order:
            records.add(timed(key, None))
        records.hold_out(3, 3, seed)
        return set(held(records))

    assert len(draw(keys, 0)) == 3
    assert draw(keys, 0) == draw(keys[::-1], 0) != draw(keys, 1)


def test_users_keep_a_history_and_those_with_too_little_are_named(staged: StagedRecords) -> None:
    for user, count in (("ann", 6), ("bob", 4), ("cy", 2)):
        for number in range(count):
            staged.add(timed(f"{number}", "2026", user))
    found = staged.hold_out(2, 3, 0)
    assert (found.queries, found.short) == (3, [("bob", "free"), ("cy", "free")])
    assert held(staged) == [("ann", "4"), ("ann", "5"), ("bob", "3")]


def test_users_whose_stored_items_decide_the_number_are_told_from_those_with_too_few(staged: StagedRecords) -> None:
    for user, count in (("ann", 6), ("bob", 6), ("cy", 6), ("dee", 4)):
        for number in range(count):
            staged.add(timed(f"{number}", "2026", user))
    for each in list(staged):
        number = int(each.item.key)
        if each.user == "cy" and number < 4:
            continue  # new in this file
        if each.user != "cy" and number >= (3 if each.user == "dee" else 4):
            staged.turn_into_query(each.id)
        staged.mark_stored(each.id)
    unchanged = staged.hold_out(2, 3, 0)
    assert (unchanged.queries, unchanged.short, unchanged.fixed) == (2, [("dee", "free")], {})
    fewer, more = staged.hold_out(1, 3, 0), staged.hold_out(3, 3, 0)
    assert fewer.fixed == {("ann", "free"): 2, ("bob", "free"): 2}
    assert more.fixed == {("ann", "free"): 2, ("bob", "free"): 2} and more.short == [("dee", "free")]


def test_stored_items_twins_and_used_keys_stay_in_the_history(staged: StagedRecords) -> None:
    for key in "abcdefg":
        staged.add(timed(key, "2026", text="twin" if key in "fg" else None))
    staged.add(record("e", held_out=True))
    stored = next(each.id for each in staged if each.item.key == "d")
    staged.mark_stored(stored)
    staged.hold_out(2, 3, 0)
    assert held(staged) == [("ann", "c"), ("ann", "e")]


def test_a_key_is_changed_unless_an_item_or_a_query_has_it(staged: StagedRecords) -> None:
    for each in (record("1"), record("2"), record("3", held_out=True)):
        staged.add(each)
    first = next(each.id for each in staged)
    assert not staged.set_key(first, "2") and not staged.set_key(first, "3") and staged.set_key(first, "4")
    assert [each.item.key for each in staged] == ["4", "2", "3"]


def test_an_item_becomes_a_query_unless_a_query_has_its_key(staged: StagedRecords) -> None:
    staged.add(record("1"))
    staged.add(record("2"))
    staged.add(record("2", held_out=True))
    first, second, _ = (each.id for each in staged)
    assert staged.turn_into_query(first) and not staged.turn_into_query(second)
    assert held(staged) == [("ann", "1"), ("ann", "2")]
