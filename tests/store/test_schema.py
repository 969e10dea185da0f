"""Migrations: a fresh store, older ones brought up whole or not at all, newer and foreign ones refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.errors import IntegrityFault, StoreBusy
from store.integrity.check import find_schema_differences
from store.migrations import steps
from store.migrations.steps import execute_script, migrate
from store.records import NewItem
from store.registry import Registry
from store.schema import OLDEST_SCHEMA, SCHEMA_VERSION
from store.tables.predictions import Prediction


def sql(root: Path, statement: str) -> list[tuple[object, ...]]:
    conn = sqlite3.connect(root / "registry.db", isolation_level=None)
    try:
        return conn.execute(statement).fetchall()
    finally:
        conn.close()


def structure(root: Path) -> set[tuple[object, ...]]:
    return set(sql(root, "SELECT type, name, sql FROM sqlite_master"))


def older_store(root: Path) -> None:
    """An empty store of the oldest schema: today's without what the steps after it add."""
    root.mkdir()
    with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        migrate(conn)
        for statement in (
            "DROP TABLE user_groups",
            "ALTER TABLE predictions DROP COLUMN whose",
            "DELETE FROM _sqlite_migrations",
            f"PRAGMA user_version = {OLDEST_SCHEMA}",
        ):
            conn.execute(statement)


def test_a_fresh_store_has_every_table_of_the_design(root: Path) -> None:
    Registry.open(root, create=True).close()
    tables = {name for (name,) in sql(root, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    designed = """users items queries profiles bases tasks banks anchors adapters recipes stacks runs steps evaluations
    predictions chats messages items_fts eval_people eval_banks cells tunings"""
    assert set(designed.split()) <= tables
    assert sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_opening_again_changes_nothing(root: Path) -> None:
    Registry.open(root, create=True).close()
    before = structure(root), sql(root, "SELECT * FROM _sqlite_migrations")
    Registry.open(root, create=True).close()
    Registry.open(root).close()
    assert (structure(root), sql(root, "SELECT * FROM _sqlite_migrations")) == before


def test_an_older_store_is_brought_up_and_keeps_its_rows(root: Path) -> None:
    older_store(root)
    sql(root, "INSERT INTO users (id, name, created) VALUES (7, 'alice', '2020')")
    values = "(9, 7, 'k', 'free', 'an old sentence', 'out')"
    sql(root, f"INSERT INTO items (id, user_id, key, task, input, output) VALUES {values}")
    sql(root, "UPDATE users SET uuid = lower(hex(randomblob(16)))")
    with Registry.open(root) as reg:
        alice = reg.users.get("alice")
        assert [item.id for item in reg.items.search_items(alice.id, "free", "sentence", limit=1)] == [9]
        assert reg.items.append_items(alice.id, [NewItem("k2", "free", "a", "b")]) == (1, 0)
        assert reg.check_integrity() == []
    assert find_schema_differences(root) == [], "but for white space its tables are those of a new store"


def test_answers_and_users_of_schema_13_get_whose_they_are_and_groups(root: Path) -> None:
    older_store(root)
    assert sql(root, "PRAGMA user_version") == [(13,)]
    for statement in (
        "INSERT INTO users (id, name, created, uuid) VALUES (7, 'alice', '2020', 'u')",
        "INSERT INTO evaluations (id, task, config, result, created) VALUES (11, 'free', '{}', '{}', '2020')",
        "INSERT INTO predictions (id, evaluation_id, user_id, query_id, method, prompt, answer, gold, gold_loglik,"
        " tokens, seconds) VALUES (12, 11, 7, 1, 'base', 'p', 'a', 'g', -1.5, 3, 0.25)",
    ):
        sql(root, statement)
    with Registry.open(root) as reg:
        (answer,) = reg.evaluations.predictions.load_predictions(11)
        assert answer == Prediction(7, 1, "base", "p", "a", "g", -1.5, 3, 0.25) and answer.whose is None
        assert reg.users.groups("free") == {}
        reg.users.set_group(7, "free", "team")
        assert reg.users.groups("free") == {7: "team"} and reg.users.groups_of_user(7) == {"free": "team"}
        reg.evaluations.predictions.add_predictions(11, [replace(answer, whose=b"1234")])
        assert [one.whose for one in reg.evaluations.predictions.load_predictions(11)] == [None, b"1234"]


def test_a_newer_store_is_refused_with_both_versions_and_left_alone(root: Path) -> None:
    Registry.open(root, create=True).close()
    sql(root, "PRAGMA user_version = 99")
    before = (root / "registry.db").read_bytes()
    for create in (False, True):
        with pytest.raises(IntegrityFault, match=rf"schema 99.*up to {SCHEMA_VERSION}") as caught:
            Registry.open(root, create=create)
        assert caught.value.hint
    assert (root / "registry.db").read_bytes() == before


def test_a_store_that_a_newer_program_migrates_meanwhile_takes_no_more_writes(root: Path) -> None:
    with Registry.open(root, create=True) as reg:
        reg.users.add("before")
        sql(root, "PRAGMA user_version = 99")
        with pytest.raises(IntegrityFault, match="schema 99"):
            reg.users.add("after")
        assert sql(root, "SELECT name FROM users") == [("before",)]


def test_a_store_that_an_older_program_has_open_is_not_migrated(root: Path) -> None:
    older_store(root)
    with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as older:
        older.execute("SELECT count(*) FROM items").fetchall()
        with pytest.raises(StoreBusy, match=rf"schema {SCHEMA_VERSION}.*has it open"):
            Registry.open(root, timeout=0.2)
        assert sql(root, "PRAGMA user_version") == [(13,)] and list(root.glob("registry.schema*")) == []
    Registry.open(root).close()
    assert sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("older", [True, False])
def test_many_first_commands_at_once_open_one_store(root: Path, older: bool) -> None:
    if older:
        older_store(root)
    opening = f"Registry.open(Path({str(root)!r}), create=True).close()"
    script = f"from pathlib import Path; from store.registry import Registry; {opening}"
    many = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(16)]
    assert [(one.communicate()[1], one.returncode) for one in many] == [("", 0)] * 16
    with Registry.open(root) as reg:
        assert reg.check_integrity() == []


def test_another_programs_database_is_refused_and_left_alone(root: Path) -> None:
    root.mkdir()
    sql(root, "CREATE TABLE songs (name TEXT)")
    for create in (False, True):
        with pytest.raises(IntegrityFault, match="another program"):
            Registry.open(root, create=create)
    assert [row[1] for row in structure(root)] == ["songs"]


def test_a_migration_that_fails_leaves_the_store_as_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the copy from before it stays one that the program before can open."""
    older_store(root)
    before = structure(root)

    def fail_last(conn: sqlite3.Connection, script: str) -> None:
        execute_script(conn, "CREATE TABLE half (x);\nCREATE TABLE users (x);\n" if "user_groups" in script else script)

    monkeypatch.setattr(steps, "execute_script", fail_last)
    for _ in range(2):
        with pytest.raises(IntegrityFault):
            Registry.open(root)
        assert structure(root) == before
        assert sql(root, "PRAGMA user_version") == [(13,)]
        assert [path.name for path in root.glob("registry.schema*")] == ["registry.schema13.db"]
    monkeypatch.undo()
    Registry.open(root).close()
    assert sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("schema", [1, OLDEST_SCHEMA - 1])
def test_a_store_from_before_the_oldest_schema_is_refused_and_left_alone(root: Path, schema: int) -> None:
    older_store(root)
    sql(root, f"PRAGMA user_version = {schema}")
    before = structure(root)
    with pytest.raises(IntegrityFault, match=rf"schema {schema}, and .* from {OLDEST_SCHEMA} on"):
        Registry.open(root)
    assert structure(root) == before and sql(root, "PRAGMA user_version") == [(schema,)]


def test_a_store_that_all_former_steps_made_is_left_alone(root: Path) -> None:
    """Their names stay in it."""
    Registry.open(root, create=True).close()
    names = [f"m{n:03}_former" for n in range(1, 14)]
    for name in names:
        sql(root, f"INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('mta', '{name}', '2026')")
    before = structure(root)
    with Registry.open(root) as reg:
        reg.users.add("ann")
        assert reg.check_integrity() == []
    assert structure(root) == before and sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
