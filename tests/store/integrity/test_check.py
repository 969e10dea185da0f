"""The check finds every kind of damage that we know to make, and nothing in a store that is well."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from store.integrity.check import find_structure_faults
from store.registry import Registry
from tests.store.making import adapted, bank, person


@pytest.fixture
def full(reg: Registry) -> Registry:
    """A store with a bank of one anchor and an adapted user."""
    alice, bob = person(reg, "alice", "a fox"), person(reg, "bob", "the sea")
    adapted(reg, bob, bank(reg, [alice]))
    return reg


def damage(root: Path, statement: str) -> None:
    conn = sqlite3.connect(root / "registry.db", isolation_level=None)
    conn.execute("PRAGMA foreign_keys = OFF")
    conn.execute(statement)
    conn.close()


def test_a_store_that_is_well(full: Registry) -> None:
    assert full.check_integrity() == []
    assert {table: count for table, count in full.count_rows().items() if count} == {
        "users": 2,
        "items": 2,
        "adapters": 3,
        "banks": 1,
        "anchors": 1,
        "recipes": 1,
        "recipe_anchors": 1,
        "stacks": 1,
        "stack_anchors": 1,
    }


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM anchors", "row None of table recipe_anchors refers to a missing row of table anchors"),
        ("DELETE FROM recipe_anchors", "the recipe of bob for task free lacks some of its anchors"),
        ("UPDATE anchors SET bank_id = 9", "refers to anchors of another bank"),
        ("DELETE FROM users WHERE name = 'bob'", "refers to a missing row of table users"),
        ("INSERT INTO items_fts (items_fts) VALUES ('delete-all')", "full-text index"),
        ("UPDATE items SET input = 'quite other words'", "full-text index"),
        ("DELETE FROM adapters WHERE kind = 'stack'", "a file of no recorded adapter"),
        ("UPDATE stacks SET numbers = x'0001', bytes = 4", "the stack of bob for task free is damaged"),
        ("UPDATE stacks SET numbers = '12'", "the stack of bob for task free is damaged"),
    ],
)
def test_damaged_rows(full: Registry, statement: str, finding: str) -> None:
    damage(full.root, statement)
    found = full.check_integrity()
    assert any(finding in line for line in found)


def test_damaged_and_missing_files(full: Registry) -> None:
    first, second, third = (full.files.path(each.digest) for each in full.adapters.all())
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    (third.parent / f"{'a' * 64}.safetensors").write_bytes(b"nobody's")
    (third.parent / ".mta-00.tmp").write_bytes(b"half")
    found = "\n".join(full.check_integrity())
    for words in (
        f"{first.stem} is damaged",
        f"{second.stem} is gone",
        "a file of no recorded adapter",
        "a process that has ended",
    ):
        assert words in found
    assert len(full.check_integrity()) == 4


def test_a_damaged_database(root: Path) -> None:
    with Registry.open(root, create=True) as reg:
        for i in range(30):
            person(reg, f"user {i}", *("words " * 50 + str(j) for j in range(5)))
    path = root / "registry.db"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 2048] = b"\xff" * 2048
    path.write_bytes(content)
    with Registry.open(root) as reg:
        assert reg.check_integrity() != []


def test_a_busy_store_is_not_called_damaged(root: Path, full: Registry) -> None:
    with Registry.open(root, timeout=0.1) as other, full.transaction():
        found = other.check_integrity()
    assert len(found) == 1
    assert "has been writing" in found[0]


def test_a_column_in_another_letter_case_is_named_before_it_answers(full: Registry) -> None:
    """As one flipped bit leaves it: every statement still finds the column, whose name then fits no record."""
    assert find_structure_faults(full.root) == []
    with sqlite3.connect(full.root / "registry.db") as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_master SET sql = replace(sql, 'created TEXT', 'cReated TEXT') WHERE name = 'banks'")
    conn.close()
    assert find_structure_faults(full.root) == ["registry.db is damaged: its table banks differs from a store's schema"]
