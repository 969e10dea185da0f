"""People in pages: the columns, every order, every filter; and that what is kept of an order is never stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from store.queries.user_row import SORT_COLUMNS, UserRow
from store.queries.user_table import MAX_PAGE_ROWS
from store.records import AnchorWeight, Recipe
from store.registry import Registry
from tests.store.making import adapted, bank, item, person


@pytest.fixture
def peopled(reg: Registry) -> Registry:
    """alice is an anchor, bob adapted and measured, carol fused, dave new with most items; erin has nothing."""
    alice, bob = person(reg, "alice", "a", "b"), person(reg, "bob", "a", "b", "c")
    carol, _ = person(reg, "carol", "a"), person(reg, "dave", "a", "b", "c", "d")
    reg.users.add("erin")
    reg.items.append_queries(bob, [item("q"), item("r")])
    reg.items.append_queries(carol, [item("q")])
    made = bank(reg, [alice])
    stack = adapted(reg, bob, made)
    reg.stacks.save_stack(replace(stack, heldout_before=2.0, heldout_after=1.5))
    (anchor,) = reg.banks.anchors(made.id)
    reg.recipes.save_recipe(Recipe(carol, "free", made.id, "evidence", (AnchorWeight(anchor.id, 0.5, 0.5),), 0))
    return reg


def names(reg: Registry, filter: str = "", sort: str = "name", descending: bool = False, **rest: object) -> list[str]:
    return [row.name for row in reg.user_table.user_page(filter, sort, descending, **rest)]  # type: ignore[arg-type]


def test_a_row_says_what_somebody_has(peopled: Registry) -> None:
    assert peopled.user_table.user_page() == [
        UserRow("alice", 2, 0, "free", "anchor", 0, 0, None),
        UserRow("bob", 3, 2, "free", "adapted", 1, 17, 0.5),
        UserRow("carol", 1, 1, "free", "fused", 1, 12, None),
        UserRow("dave", 4, 0, "free", "new", 0, 0, None),
        UserRow("erin", 0, 0, None, "new", 0, 0, None),
    ]


@pytest.mark.parametrize(
    ("sort", "up", "down"),
    [
        ("name", "abcde", "edcba"),
        ("items", "ecabd", "dbace"),
        ("queries", "adecb", "bcade"),
        ("status", "deacb", "bcade"),
        ("bytes", "adecb", "bcade"),
        ("change", "bacde", "bacde"),
    ],
)
def test_every_order_has_equals_by_name_and_unknown_last(peopled: Registry, sort: str, up: str, down: str) -> None:
    assert "".join(name[0] for name in names(peopled, sort=sort)) == up
    assert "".join(name[0] for name in names(peopled, sort=sort, descending=True)) == down


def test_there_is_no_order_but_those(peopled: Registry) -> None:
    with pytest.raises(ValueError, match="not by 'name; DROP TABLE users'"):
        peopled.user_table.user_page(sort="name; DROP TABLE users")


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ("A", ["alice", "carol", "dave"]),
        ("a e", ["alice", "dave"]),
        ("status:adapted", ["bob"]),
        ("status:a", ["alice", "bob"]),
        ("status:nobody", []),
        ("items>2", ["bob", "dave"]),
        ("items>=2 items<4", ["alice", "bob"]),
        ("items=0", ["erin"]),
        ("queries>0 status:fused", ["carol"]),
        ("change>0", ["bob"]),
        ("change<100", ["bob"]),
        ("bytes>12", ["bob"]),
        ("anchors>0 c", ["carol"]),
        ("task:free", ["alice", "bob", "carol", "dave"]),
        ("task:fr", ["alice", "bob", "carol", "dave"]),
        ("task:ee", []),
        ("status:", ["alice", "bob", "carol", "dave", "erin"]),
    ],
)
def test_a_filter_finds_whom_it_asks_for(peopled: Registry, filter: str, found: list[str]) -> None:
    assert names(peopled, filter) == found
    assert names(peopled, filter, "items") == sorted(found, key="erin carol alice bob dave".index)
    assert peopled.user_table.count_users_matching(filter) == len(found)


def test_a_task_that_exists_is_meant_exactly(reg: Registry) -> None:
    person(reg, "alice", "a", task="lamp-2")
    person(reg, "bob", "a", task="lamp-2n")
    assert names(reg, "task:lamp-2") == ["alice"]
    assert names(reg, "task:lamp-") == ["alice", "bob"]


def test_names_hold_what_they_hold(reg: Registry) -> None:
    for name in ("50%", "5_0", "a\\b", "Zoë", "ΑΘΗΝΑ", "status:adapted"):
        reg.users.add(name)
    assert names(reg, "%") == ["50%"] and names(reg, "_") == ["5_0"] and names(reg, "\\") == ["a\\b"]
    assert names(reg, "ZOË") == names(reg, "zoë") == names(reg, "Zoe\u0308") == ["Zoë"]
    assert names(reg, "αθηνα") == ["ΑΘΗΝΑ"]
    assert names(reg, '"status:adapted"') == ["status:adapted"] and names(reg, "status:adapted") == []
    assert names(reg, "' OR 1=1 --") == [] and names(reg, "\ud800") == [] and names(reg, "\0") == names(reg)


def test_pages_make_up_the_whole(reg: Registry) -> None:
    for n in range(25):
        person(reg, f"p{n:02}", *map(str, range(n % 3)))
    for sort in SORT_COLUMNS:
        whole = names(reg, sort=sort, limit=100)
        assert len(whole) == 25
        parts = [names(reg, sort=sort, offset=start, limit=10) for start in range(0, 40, 10)]
        assert [name for part in parts for name in part] == whole and parts[3] == []
        assert [reg.user_table.index_of_user(name, sort=sort) for name in whole] == list(range(25))
        assert [
            reg.user_table.index_of_user(name, sort=sort, descending=True) for name in names(reg, "", sort, True)
        ] == [*range(25)]
    assert reg.user_table.user_page(limit=-1) == [] and names(reg, offset=-5, limit=1) == ["p00"]


def test_a_page_has_an_end(reg: Registry) -> None:
    for n in range(MAX_PAGE_ROWS + 1):
        reg.users.add(f"p{n}")
    assert len(reg.user_table.user_page(limit=10**6)) == MAX_PAGE_ROWS


def test_a_place_is_within_the_filter(peopled: Registry) -> None:
    assert peopled.user_table.index_of_user("carol", "c") == 1
    assert peopled.user_table.index_of_user("carol", "items<2", "items") == 1
    assert peopled.user_table.index_of_user("carol", "items<2", "items", True) == 0
    for filter in ("b", "items>1"):
        assert peopled.user_table.index_of_user("carol", filter) is None
    assert peopled.user_table.index_of_user("nobody") is None


def test_with_a_task_only_that_task_counts(peopled: Registry) -> None:
    bob, erin = peopled.users.get("bob").id, peopled.users.get("erin").id
    peopled.items.append_items(bob, [item(str(n), task="other") for n in range(9)])
    peopled.items.append_queries(erin, [item("q", task="other")])
    assert [(row.name, row.items, row.status) for row in peopled.user_table.user_page(task="other")] == [
        ("bob", 9, "new"),
        ("erin", 0, "new"),
    ]
    assert names(peopled, task="free") == ["alice", "bob", "carol", "dave"]
    assert (
        peopled.user_table.count_users_matching("", "other") == 2
        and peopled.user_table.count_users_matching("e", "free") == 2
    )
    assert [(row.items, row.task, row.status) for row in peopled.user_table.user_page("bob")] == [
        (12, "other", "adapted")
    ]
    assert names(peopled, "", "items", True, task="other") == ["bob", "erin"]


def test_standing_is_that_in_the_newest_ready_bank(peopled: Registry) -> None:
    bob, carol = peopled.users.get("bob").id, peopled.users.get("carol").id
    peopled.banks.get_or_create_bank("free", "unfinished", "free", "b", "e", 0, {})
    bank(peopled, [carol], name="eval free", purpose="eval")
    assert names(peopled, "status:adapted") == ["bob"]
    new = bank(peopled, [bob], key="newer")
    rows = {row.name: row for row in peopled.user_table.user_page()}
    assert [rows[name].status for name in ("alice", "bob", "carol")] == ["new", "anchor", "new"]
    assert rows["bob"].change is None and rows["bob"].bytes == 0
    adapted(peopled, carol, new, b"other stack")
    assert [row.bytes for row in peopled.user_table.user_page("status:adapted")] == [12 + 11]


def test_somebody_with_two_tasks_has_both_models_bytes_and_the_newer_ones_change(peopled: Registry) -> None:
    bob = peopled.users.get("bob").id
    peopled.items.append_items(bob, [item("x", task="other")])
    second = bank(peopled, [peopled.users.get("dave").id, peopled.users.get("alice").id], name="other", task="other")
    stack = adapted(peopled, bob, second, b"1234567", task="other")
    peopled.stacks.save_stack(replace(stack, heldout_before=1.0, heldout_after=1.25))
    (row,) = peopled.user_table.user_page("bob")
    assert (row.bytes, row.anchors, row.change, row.task) == (17 + 24 + 7, 2, -0.25, "free")
    (row,) = peopled.user_table.user_page("bob", task="free")
    assert (row.bytes, row.anchors, row.change) == (17, 1, 0.5)


@pytest.mark.parametrize("sort", SORT_COLUMNS)
def test_rows_agree_with_the_summaries_of_all_users(peopled: Registry, sort: str) -> None:
    expected = {
        each.name: (each.items, each.queries, each.task, each.status) for each in peopled.user_table.summaries()
    }
    found = {
        row.name: (row.items, row.queries, row.task, row.status) for row in peopled.user_table.user_page(sort=sort)
    }
    assert found == expected


def test_an_order_that_is_kept_is_dropped_when_the_store_changes(peopled: Registry, root: Path) -> None:
    assert names(peopled, sort="items")[-1] == "dave" and peopled.user_table.count_users_matching("items>3") == 1
    person(peopled, "zed", *"abcdefg")
    assert names(peopled, sort="items")[-1] == "zed" and peopled.user_table.count_users_matching("items>3") == 2
    with Registry.open(root) as other:
        person(other, "yan", *"abcdefghij")
    assert names(peopled, sort="items")[-1] == "yan" and peopled.user_table.count_users_matching("items>3") == 3
    peopled.users.forget(peopled.users.get("yan").id)
    assert names(peopled, sort="items")[-1] == "zed" and peopled.user_table.index_of_user("yan", sort="items") is None


def test_the_same_question_needs_everybody_once(peopled: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = peopled._db.fetch_tuples

    def watched(sql: str, values: object = ()) -> list[tuple[object, ...]]:
        asked.append(sql)
        return plain(sql, values)  # type: ignore[arg-type]

    monkeypatch.setattr(peopled._db, "fetch_tuples", watched)
    peopled.user_table.count_users_matching("", sort="items")
    asked.clear()
    peopled.user_table.count_users_matching("items>0", sort="items")
    peopled.user_table.user_page("items>0", "items")
    peopled.user_table.user_page("items>0", "items", offset=2)
    peopled.user_table.index_of_user("bob", "items>0", "items")
    assert sum("ORDER BY coalesce(i.n, 0)" in sql for sql in asked) == 1


def test_a_store_without_people_has_an_empty_page(reg: Registry) -> None:
    assert reg.user_table.user_page(sort="change") == reg.user_table.user_page() == []
    assert reg.user_table.count_users_matching() == reg.user_table.count_users_matching("items>3") == 0


def test_tasks_are_those_that_people_have_something_of(peopled: Registry) -> None:
    erin = peopled.users.get("erin").id
    peopled.items.append_queries(erin, [item("q", task="other"), item("q", task="free")])
    assert peopled.user_table.tasks_with_user_counts() == [("free", 5), ("other", 1)]
    made = peopled.banks.latest_ready_bank("free")
    assert made is not None
    peopled.recipes.save_recipe(Recipe(erin, "copied", made.id, "evidence", (), 0))  # as in a pulled copy
    assert ("copied", 1) in peopled.user_table.tasks_with_user_counts()


def test_summaries_are_those_of_the_filter_and_at_most_so_many(peopled: Registry) -> None:
    def found(task: str | None = None, filter: str = "", limit: int | None = None) -> list[str]:
        return [each.name for each in peopled.user_table.summaries(task, filter, limit)]

    assert found() == ["alice", "bob", "carol", "dave", "erin"]
    assert found(filter="items>1") == ["alice", "bob", "dave"] and found(filter="items>1", limit=2) == ["alice", "bob"]
    assert found(filter="status:fused") == ["carol"] and found("free", "a", 9) == ["alice", "carol", "dave"]


def test_the_first_summaries_are_there_before_the_last_are_read(
    peopled: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.queries.user_table.MAX_PAGE_ROWS", 2)
    expected = list(peopled.user_table.summaries())
    lines = peopled.user_table.summaries()
    assert [next(lines), next(lines)] == expected[:2]
    peopled.users.forget(peopled.users.get("dave").id)
    assert [each.name for each in lines] == ["carol", "erin"]
