"""Items and queries: appended once, never changed, read in order, hashed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mta_cli.errors import BadInput
from store.records import NewItem
from store.registry import Registry
from store.tables.items import MAX_FAULTS_SHOWN
from tests.store.making import item, person


def test_a_second_append_changes_nothing(reg: Registry) -> None:
    user = reg.users.add("alice")
    items = [item("1", time="2024-01-01T00:00:00Z"), item("2")]
    assert reg.items.append_items(user.id, items) == (2, 0)
    assert reg.items.append_items(user.id, items) == (0, 2)
    assert reg.items.append_items(user.id, [*items, item("3")]) == (1, 2)
    assert len(reg.items.recent_items(user.id, "free")) == 3


@pytest.mark.parametrize("change", [{"input": "other"}, {"output": "other"}, {"time": "2020"}])
def test_changed_content_is_a_fault_and_nothing_is_added(reg: Registry, change: dict[str, str]) -> None:
    user = reg.users.add("alice")
    reg.items.append_items(user.id, [item("1")])
    with pytest.raises(BadInput, match="item '1' of user 'alice' already exists with other content") as caught:
        reg.items.append_items(user.id, [item("2"), replace(item("1"), **change), item("3")])
    assert len(caught.value.faults) == 1
    assert [found.key for found in reg.items.recent_items(user.id, "free")] == ["1"]


def test_a_key_twice_in_one_append(reg: Registry) -> None:
    user = reg.users.add("alice")
    assert reg.items.append_items(user.id, [item("1"), item("1")]) == (1, 1)
    with pytest.raises(BadInput):
        reg.items.append_items(user.id, [item("2", "these"), item("2", "those")])
    assert len(reg.items.recent_items(user.id, "free")) == 1


def test_a_key_is_of_one_user_and_task(reg: Registry) -> None:
    alice, bob = reg.users.add("alice").id, reg.users.add("bob").id
    reg.items.append_items(alice, [item("1", "a"), item("1", "b", task="lamp-2")])
    reg.items.append_items(bob, [item("1", "c")])
    assert reg.items.append_queries(alice, [item("1", "d")]) == (1, 0)
    assert [
        len(reg.items.recent_items(alice, "free")),
        len(reg.items.recent_items(alice, "lamp-2")),
        len(reg.items.recent_items(bob, "free")),
    ] == [1, 1, 1]


def test_many_faults_are_counted_and_the_first_shown(reg: Registry) -> None:
    user = reg.users.add("alice")
    reg.items.append_items(user.id, [item(str(i)) for i in range(100)])
    with pytest.raises(BadInput, match="and 99 more") as caught:
        reg.items.append_items(user.id, [item(str(i), "changed") for i in range(100)])
    assert len(caught.value.faults) == MAX_FAULTS_SHOWN


def test_queries(reg: Registry) -> None:
    user = reg.users.add("alice")
    asked = [item("q1", "first", "gold", time="2024"), item("q2", "second", "gold")]
    assert reg.items.append_queries(user.id, asked) == (2, 0)
    assert reg.items.append_queries(user.id, asked) == (0, 2)
    with pytest.raises(BadInput, match="query 'q1' of user 'alice'"):
        reg.items.append_queries(user.id, [item("q1", "first", "other gold", time="2024")])
    assert [(query.key, query.gold) for query in reg.items.queries(user.id, "free")] == [("q2", "gold"), ("q1", "gold")]
    assert len(reg.items.queries(user.id, "free", limit=1)) == 1
    assert reg.items.search_items(user.id, "free", "first", limit=5) == [], "a held-out query is in no history"


def test_a_hundred_thousand_items(reg: Registry) -> None:
    users = [reg.users.add(f"user {i}").id for i in range(100)]
    rows = [(users[i % 100], item(str(i), f"plain words number {i} about film {i % 97}")) for i in range(100_000)]
    queries = [(user, item("q")) for user in users]
    assert reg.items.bulk_append(iter(rows), iter(queries)) == (100_000, 0, 100, 0)
    assert reg.items.bulk_append(iter(rows), iter(queries)) == (0, 100_000, 0, 100)
    assert reg.count_rows()["items"] == 100_000
    assert [found.key for found in reg.items.search_items(users[42], "free", "number 99942", limit=1)] == ["99942"]


def test_a_bulk_append_is_all_or_nothing(reg: Registry) -> None:
    user = reg.users.add("alice").id
    reg.items.append_queries(user, [item("q", "a")])
    with pytest.raises(BadInput):
        reg.items.bulk_append([(user, item("1"))], [(user, item("q", "b"))])
    assert reg.count_rows()["items"] == 0


def test_order_is_unknown_times_first_then_time_then_arrival(reg: Registry) -> None:
    user = reg.users.add("alice").id
    times = {"a": "2024-02", "b": None, "c": "2024-01", "d": "2024-02", "e": None}
    reg.items.append_items(user, [item(key, time=time) for key, time in times.items()])
    assert [found.key for found in reg.items.recent_items(user, "free")] == ["b", "e", "c", "a", "d"]
    assert [found.key for found in reg.items.recent_items(user, "free", 3)] == ["c", "a", "d"]
    assert reg.items.recent_items(user, "free", 0) == []
    assert reg.items.recent_items(user, "other") == []


def test_items_after_a_watermark(reg: Registry) -> None:
    user = person(reg, "alice", "a", "b", "c")
    person(reg, "bob", "d")
    all_items = reg.items.items_after(user, "free", 0)
    assert [found.input for found in all_items] == ["a", "b", "c"]
    assert reg.items.items_after(user, "free", all_items[1].id) == all_items[2:]


def test_the_data_hash_knows_content_and_order(reg: Registry) -> None:
    alice, bob = person(reg, "alice", "a", "b"), person(reg, "bob", "c")
    items = reg.items.recent_items(alice, "free")
    both = [*items, *reg.items.recent_items(bob, "free")]
    assert reg.items.hash_histories([alice, bob], "free") == reg.items.hash_items(both)
    hashes = {reg.items.hash_items(each) for each in (items, items[::-1], items[:1], both, [])}
    hashes.add(reg.items.hash_items([replace(items[0], input="A"), items[1]]))
    hashes.add(reg.items.hash_items([replace(items[0], time="2024"), items[1]]))
    assert len(hashes) == 7
    assert reg.items.hash_items([replace(one, id=one.id + 5) for one in items]) == reg.items.hash_items(items)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
KEYS = st.lists(st.tuples(TEXT, TEXT, TEXT, st.none() | TEXT), max_size=6, unique_by=lambda row: row[0])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=KEYS, task=TEXT)
def test_any_text_comes_back_as_it_went_in(
    reg: Registry, rows: list[tuple[str, str, str, str | None]], task: str
) -> None:
    with pytest.raises(InterruptedError), reg.transaction():
        user = reg.users.add("alice").id
        items = [item(key, words, output, task=task, time=time) for key, words, output, time in rows]
        assert reg.items.append_items(user, items) == (len(items), 0)
        assert reg.items.append_items(user, items) == (0, len(items))
        found = {each.key: (each.input, each.output, each.time) for each in reg.items.recent_items(user, task)}
        assert found == {each.key: (each.input, each.output, each.time) for each in items}
        raise InterruptedError  # leaves the store empty for the next example


def test_known_items_use_up_no_numbers(reg: Registry) -> None:
    alice = person(reg, "alice", *(f"known {n}" for n in range(3)))
    known = [item.id for item in reg.items.recent_items(alice, "free")]
    rows = [NewItem(f"new {n}", "free", "new", "answer") for n in range(1_200)]
    assert reg.items.append_items(alice, rows[:700]) == (700, 0)
    assert reg.items.append_items(alice, rows) == (500, 700)
    numbers = [item.id for item in reg.items.recent_items(alice, "free")]
    assert numbers == list(range(known[0], known[0] + 1_203)), "an import that is run again ends with the same numbers"


def test_what_was_added_since_is_told_by_its_key(reg: Registry) -> None:
    assert reg.items.last_row_ids() == (0, 0)
    alice = person(reg, "alice", "old")
    before = reg.items.last_row_ids()
    many = [item(f"new {n}") for n in range(1_200)]
    reg.items.bulk_append([(alice, one) for one in many], [(alice, item("asked"))])
    found = list(reg.items.keys_added_after(before))
    assert found == [("alice", "free", one.key, False) for one in many] + [("alice", "free", "asked", True)]
    assert list(reg.items.keys_added_after(reg.items.last_row_ids())) == []
