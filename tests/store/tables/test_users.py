"""Users: added once, found by name, summarised in one query."""

from __future__ import annotations

import pytest

from mta_cli.errors import BadInput, Command, NotFound
from store.records import Recipe
from store.registry import Registry
from tests.store.making import adapted, bank, item, person


def test_added_and_found(reg: Registry) -> None:
    alice = reg.users.add("alice", can_anchor=False)
    assert reg.users.get("alice") == reg.users.by_id(alice.id) == alice
    assert not alice.can_anchor
    assert reg.users.get_or_create_user("alice") == (alice, False)
    bob, added = reg.users.get_or_create_user("bob")
    assert (added, bob.can_anchor) == (True, True)
    reg.users.set_can_anchor(alice.id, True)
    assert reg.users.get("alice").can_anchor
    assert reg.users.names() == ["alice", "bob"]


def test_a_name_is_taken_once(reg: Registry) -> None:
    reg.users.add("Zoë")
    for same in ("Zoë", "Zoe\u0308"):
        with pytest.raises(BadInput, match="already"):
            reg.users.add(same)
        assert reg.users.get(same).name == "Zoë"


def test_names_that_differ_in_case_are_two_users(reg: Registry) -> None:
    assert reg.users.add("Alice").id != reg.users.add("alice").id


@pytest.mark.parametrize(
    "name", ["../x", "", "--help", "a\nb", "\0", "x" * 10_000, "\u202e", "\ud800", "'; DROP TABLE users"]
)
def test_an_unknown_name_is_not_found_whatever_it_is(reg: Registry, name: str) -> None:
    with pytest.raises((NotFound, BadInput)) as caught:
        reg.users.get(name)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 120


def test_the_nearest_names_are_suggested(reg: Registry) -> None:
    for name in ("alice", "alina", "Bob", "zed"):
        reg.users.add(name)
    with pytest.raises(NotFound) as caught:
        reg.users.get("alise")
    assert caught.value.hint is not None
    assert "'alice'" in caught.value.hint
    assert "zed" not in caught.value.hint
    with pytest.raises(NotFound, match="'bob'") as caught:
        reg.users.get("bob")
    assert caught.value.hint == "did you mean 'Bob'?"
    reg.users.add("Dev Patel")
    for part in ("dev", "Pat"):
        with pytest.raises(NotFound) as caught:
            reg.users.get(part)
        assert caught.value.hint == "did you mean 'Dev Patel'?"
    with pytest.raises(NotFound) as caught:
        reg.users.get("qqqqqq")
    assert caught.value.hint == (Command("user list"), " shows all users")
    with pytest.raises(NotFound):
        reg.users.by_id(99)


def test_a_user_named_like_a_path_makes_no_path(reg: Registry) -> None:
    before = set(reg.root.parent.rglob("*"))
    user = reg.users.add("../x")
    reg.items.append_items(user.id, [item("../../y")])
    with reg.job_lock("adapt ../x"):
        reg.files.write_checkpoint("../x", b"checkpoint")
    new = set(reg.root.parent.rglob("*")) - before
    assert all(path.is_relative_to(reg.root) for path in new)
    assert not any("x" in path.stem[:2] for path in new)


def test_tasks_and_counts(reg: Registry) -> None:
    alice = person(reg, "alice", "a", "b")
    person(reg, "alice", "a", "b", "c", task="lamp-2")
    reg.items.append_queries(alice, [item("q"), item("r", task="only-queries")])
    person(reg, "bob", "a")
    reg.users.add("carol")
    assert reg.users.tasks_of_user(alice) == [("lamp-2", 3, 0), ("free", 2, 1), ("only-queries", 0, 1)]
    assert [(user.name, count) for user, count in reg.users.users_with_items("free")] == [("alice", 2), ("bob", 1)]
    assert reg.users.users_with_items("none") == []


def test_summaries_without_any_bank(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    person(reg, "alice", "a", "b", task="lamp-2")
    reg.items.append_queries(alice, [item("q")])
    reg.users.add("bob")
    assert [(s.name, s.items, s.queries, s.task, s.status, s.stack_bytes) for s in reg.user_table.summaries()] == [
        ("alice", 3, 1, "lamp-2", "new", 0),
        ("bob", 0, 0, None, "new", 0),
    ]
    assert [(s.name, s.items, s.queries, s.task) for s in reg.user_table.summaries(task="free")] == [
        ("alice", 1, 1, "free")
    ]
    assert list(reg.user_table.summaries(task="none")) == []


def test_a_users_standing_is_that_in_the_newest_bank(reg: Registry) -> None:
    names = ("alice", "bob", "carol", "dave")
    alice, bob, carol, _ = (person(reg, name, "a") for name in names)
    old = bank(reg, [alice])
    adapted(reg, bob, old)
    reg.recipes.save_recipe(Recipe(carol, "free", old.id, "uniform", (), 0))

    def standing(task: str | None = None) -> list[tuple[str, int]]:
        return [(s.status, s.stack_bytes) for s in reg.user_table.summaries(task)]

    assert standing() == [("anchor", 0), ("adapted", 5), ("fused", 0), ("new", 0)]
    assert standing(task="free") == standing()
    reg.banks.get_or_create_bank("free", "unfinished", "free", "b", "e", 0, {})
    assert standing() == [("anchor", 0), ("adapted", 5), ("fused", 0), ("new", 0)]
    bank(reg, [bob], key="newer")
    assert standing() == [("new", 0), ("anchor", 0), ("new", 0), ("new", 0)]


def test_banks_of_evaluations_give_nobody_a_standing(reg: Registry) -> None:
    alice = person(reg, "alice", "a")
    bank(reg, [alice], name="eval free", purpose="eval")
    (line,) = reg.user_table.summaries()
    assert line.status == "new" and list(reg.user_table.summaries(task="free")) == [line]
    bank(reg, [alice])
    assert [each.status for each in reg.user_table.summaries()] == ["anchor"]
