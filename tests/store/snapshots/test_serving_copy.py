"""A serving copy answers as the store does, and contains no text and no forgotten user."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import StoreBusy
from store.registry import Registry
from tests.store.making import adapted, bank, item, person
from tests.store.snapshots.conftest import SENTENCE, choice

NEVER_COPIED = {
    *("queries", "profiles", "task_adapter_users", "runs", "run_users", "steps", "evaluations", "eval_people"),
    *("eval_banks", "cells", "tunings", "predictions", "chats", "messages", "message_anchors", "jobs", "job_users"),
    "tombstones",
    "user_groups",
}


def copied(reg: Registry, path: Path, **changes: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.touch()
    reg.write_serving_copy(path, choice(**changes))
    return path


def opened(reg: Registry, folder: Path, **changes: Any) -> Registry:
    copied(reg, folder / "registry.db", **changes)
    return Registry.open(folder)


def rows(path: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as conn:
        return conn.execute(sql).fetchall()


def test_a_copy_is_a_sound_store_with_what_answers_need(full: Registry, tmp_path: Path) -> None:
    bob = full.users.get("bob").id
    with opened(full, tmp_path / "copy") as copy:
        assert copy.check_database() == []
        assert copy.users.names() == full.users.names()
        for task in ("free", "taste"):
            serving = full.banks.latest_ready_bank(task)
            assert serving is not None and copy.banks.latest_ready_bank(task) == serving
            assert copy.banks.anchors(serving.id) == full.banks.anchors(serving.id)
            assert copy.recipes.get(bob, task, serving.id) == full.recipes.get(bob, task, serving.id) is not None
            assert copy.stacks.get(bob, task, serving.id) == full.stacks.get(bob, task, serving.id) is not None
        assert copy.adapters.all() == full.adapters.all()


def test_labels_are_kept_for_label_memory_and_no_text_beside_them(full: Registry, tmp_path: Path) -> None:
    bob, tastes = full.users.get("bob").id, full.banks.get("taste")
    with opened(full, tmp_path / "copy") as copy:
        assert [(one.input, one.output) for one in copy.items.recent_items(bob, "taste")] == [("", "go"), ("", "skip")]
        assert copy.neighbours.consenting_neighbours(tastes.id) == [
            one.__class__(**{**vars(one), "output": one.output.strip()})
            for one in full.neighbours.consenting_neighbours(tastes.id)
        ]
        assert copy.items.search_items(bob, "taste", "moss go", limit=3) == []
        assert copy.items.recent_items(bob, "free") == []


def test_no_text_is_in_a_copy(full: Registry, tmp_path: Path) -> None:
    content = copied(full, tmp_path / "copy.db").read_bytes()
    for text in (SENTENCE, "the sea", "moss", "who knows", "hidden question", "herons", "my secret"):
        assert text.encode() not in content
    empty = {table for table in full.count_rows() if not rows(tmp_path / "copy.db", f"SELECT 1 FROM {table}")}
    assert empty == NEVER_COPIED


def test_the_bytes_of_a_forgotten_user_are_not_in_a_copy(full: Registry, tmp_path: Path) -> None:
    with closing(sqlite3.connect(full.root / "registry.db")) as reader:  # it keeps the removed bytes in the store
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        with Registry.open(full.root, timeout=0.05) as hasty, pytest.raises(StoreBusy):
            hasty.users.forget(hasty.users.get("bob").id)
        content = copied(full, tmp_path / "copy.db").read_bytes()
    assert b"bob" not in content and b"alice" in content


def test_the_same_rows_make_the_same_bytes(full: Registry, tmp_path: Path) -> None:
    first = copied(full, tmp_path / "one").read_bytes()
    full.chats.start_chat(full.users.get("bob").id, "another chat")
    person(full, "alice", SENTENCE, "a new item of a task of texts")
    assert copied(full, tmp_path / "two").read_bytes() == first
    full.users.add("dora")
    assert copied(full, tmp_path / "three").read_bytes() != first


def test_only_the_newest_ready_bank_of_a_task_and_base_is_copied(full: Registry, tmp_path: Path) -> None:
    alice, bob = full.users.get("alice").id, full.users.get("bob").id
    bank(full, [alice], key="evaluated", purpose="eval")
    newer = bank(full, [alice], key="newer")
    adapted(full, bob, newer, b"newer stack")
    other = bank(full, [alice], key="other base", base="sha256:" + "c" * 64)
    full.banks.get_or_create_bank("free", "unfinished", "free", newer.base, newer.embedder, 0, {}, "")
    with opened(full, tmp_path / "copy") as copy:
        assert {one.id for one in copy.banks.all()} == {newer.id, other.id, full.banks.get("taste").id}
        assert [one.bank_id for one in copy.recipes.of_user(bob) if one.task == "free"] == [newer.id]
        digests = {one.digest for one in copy.adapters.all()}
    first = full.banks.get("free", 1)
    assert first.task_adapter not in digests and newer.task_adapter in digests


def test_one_task_alone(full: Registry, tmp_path: Path) -> None:
    person(full, "dora", "only a text")
    full.tasks.save_task("mine", "toml")
    with opened(full, tmp_path / "copy", tasks=("taste",)) as copy:
        assert copy.check_database() == []
        assert copy.users.names() == ["alice", "bob"]
        assert [one.name for one in copy.banks.all()] == ["taste"] and list(copy.tasks.all()) == ["taste"]
    with opened(full, tmp_path / "other", tasks=("free",)) as copy:
        assert copy.users.names() == ["alice", "bob", "carol", "dora"]
        assert copy.count_rows()["items"] == 0


def test_users_are_found_by_the_task_of_their_recipe(full: Registry, tmp_path: Path) -> None:
    with opened(full, tmp_path / "copy") as copy:
        bob = copy.users.get("bob").id
        assert copy.users.tasks_of_user(bob) == [("taste", 2, 0), ("free", 0, 0)]
        assert [one.name for one in copy.user_table.summaries("free")] == ["bob"]
        assert [one.name for one in copy.user_table.user_page("task:free")] == ["bob"]


def test_names_are_replaced_everywhere(full: Registry, tmp_path: Path) -> None:
    content = copied(full, tmp_path / "copy.db", shown_name=lambda name: name[::-1].upper()).read_bytes()
    assert all(name.encode() not in content for name in ("alice", "bob", "carol"))
    assert rows(tmp_path / "copy.db", "SELECT name FROM users ORDER BY id") == [("ECILA",), ("BOB",), ("LORAC",)]


def test_withdrawn_consent_leaves_no_neighbour(full: Registry, tmp_path: Path) -> None:
    full.users.set_can_anchor(full.users.get("alice").id, False)
    with opened(full, tmp_path / "copy") as copy:
        assert copy.count_rows()["neighbours"] == 0
        assert all(one.stale for one in copy.banks.anchors(full.banks.get("taste").id))


def test_a_copy_is_of_one_moment(full: Registry, tmp_path: Path) -> None:
    """A writer who commits while labels are read is not seen in the tables that are read later."""
    bob = full.users.get("bob").id

    def label_of(task: str, output: str) -> str | None:
        with Registry.open(full.root) as other:
            for one in other.recipes.of_user(bob):
                other.recipes.remove(bob, one.task, one.bank_id)
        return output

    with opened(full, tmp_path / "copy", label_of=label_of) as copy:
        assert len(copy.recipes.of_user(bob)) == 2
    assert full.recipes.of_user(bob) == []


def test_an_item_of_a_real_store_always_has_a_text(reg: Registry) -> None:
    """`search_items` leaves out items without an input, as copies have them; others keep theirs."""
    user = person(reg, "alice")
    reg.items.append_items(user, [item("a", "a fox"), item("b", "a hill")])
    assert [one.input for one in reg.items.search_items(user, "free", "hill", limit=5)] == ["a hill", "a fox"]
