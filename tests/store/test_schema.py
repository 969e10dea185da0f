"""Migrations: a fresh store, older ones brought up whole or not at all, newer and foreign ones refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlite_utils import Database

from mta_cli.errors import IntegrityFault, StoreBusy
from store.migrations import steps
from store.migrations.script import execute_script
from store.migrations.steps import migrations
from store.records import NewItem, Stack
from store.registry import Registry
from store.schema import SCHEMA_VERSION
from store.tables.predictions import Prediction
from store.tables.recipes_and_stacks import pack_anchor_weights

NAMES = [migration.name for migration in migrations.pending(Database(memory=True, execute_plugins=False))]


def sql(root: Path, statement: str) -> list[tuple[object, ...]]:
    conn = sqlite3.connect(root / "registry.db", isolation_level=None)
    try:
        return conn.execute(statement).fetchall()
    finally:
        conn.close()


def structure(root: Path) -> set[tuple[object, ...]]:
    return set(sql(root, "SELECT type, name, sql FROM sqlite_master"))


def older_store(root: Path, stop_before: str) -> None:
    root.mkdir()
    conn = sqlite3.connect(root / "registry.db", isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    migrations.apply(Database(conn, execute_plugins=False), stop_before=stop_before)
    conn.close()


def test_a_fresh_store_has_every_table_of_the_design(root: Path) -> None:
    Registry.open(root, create=True).close()
    tables = {name for (name,) in sql(root, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    designed = """users items queries profiles bases tasks banks anchors adapters recipes stacks runs steps evaluations
    predictions chats messages items_fts eval_people eval_banks cells tunings"""
    assert set(designed.split()) <= tables
    assert sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)] == [(len(NAMES),)]


def test_opening_again_changes_nothing(root: Path) -> None:
    Registry.open(root, create=True).close()
    before = structure(root), sql(root, "SELECT * FROM _sqlite_migrations")
    Registry.open(root, create=True).close()
    Registry.open(root).close()
    assert (structure(root), sql(root, "SELECT * FROM _sqlite_migrations")) == before


@pytest.mark.parametrize("next_migration", NAMES[1:])
def test_an_older_store_is_brought_up_and_keeps_its_rows(root: Path, tmp_path: Path, next_migration: str) -> None:
    older_store(root, next_migration)
    sql(root, "INSERT INTO users (id, name, created) VALUES (7, 'alice', '2020')")
    values = "(9, 7, 'k', 'free', 'an old sentence', 'out')"
    sql(root, f"INSERT INTO items (id, user_id, key, task, input, output) VALUES {values}")
    if NAMES.index(next_migration) > NAMES.index("m008_integrity"):
        sql(root, "UPDATE users SET uuid = lower(hex(randomblob(16)))")
    with Registry.open(root) as reg:
        if NAMES.index(next_migration) <= NAMES.index("m008_integrity"):
            assert len(reg._db.fetch_value("SELECT uuid FROM users")) == 32
        alice = reg.users.get("alice")
        assert [item.id for item in reg.items.search_items(alice.id, "free", "sentence", limit=1)] == [9]
        assert reg.items.append_items(alice.id, [NewItem("k2", "free", "a", "b")]) == (1, 0)
        assert reg.check_integrity() == []
    Registry.open(tmp_path / "fresh", create=True).close()
    assert structure(root) == structure(tmp_path / "fresh")


def test_evaluations_and_banks_of_an_older_store_are_kept(root: Path) -> None:
    older_store(root, "m004_evaluation")
    digest = "'" + "a" * 64 + "'"
    for statement in (
        "INSERT INTO users VALUES (7, 'alice', 1, '2020')",
        "INSERT INTO items VALUES (9, 7, 'k', 'free', 'an old sentence', 'out', NULL)",
        f"INSERT INTO adapters VALUES ({digest}, 'task', 'b', NULL, 2, 4.0, 'q', 'all', 'f', 0, '', 1, '{{}}', '{{}}',"
        " 0, 0, NULL, NULL, '2020')",
        f"INSERT INTO banks VALUES (3, 'free', 1, 'k', 'free', 'b', 'e', {digest}, 'ready', 0, '{{\"rank\": 2}}', 5,"
        " 1.5, '2020')",
        "INSERT INTO anchors VALUES (4, 3, 7, 0, 1, 5, NULL, 2.0, 1.0, 0)",
        "INSERT INTO evaluations VALUES (11, 'free', 3, '{\"shots\": 5}', '{\"users\": 1}', '2020')",
        "INSERT INTO predictions VALUES (12, 11, 7, 1, 'base', 'p', 'a', 'g', -1.5, 3, 0.25)",
    ):
        sql(root, statement)
    with Registry.open(root) as reg:
        bank = reg.banks.by_id(3)
        assert (bank.purpose, bank.config, bank.seconds) == ("", {"rank": 2}, 1.5)
        assert (
            reg.banks.all() == [bank] == [reg.banks.latest_ready_bank("free")]
            and reg.banks.anchors(3)[0].user == "alice"
        )
        found = reg.evaluations.get(11)
        assert (found.key, found.status, found.bank_id, found.config) == (None, "done", 3, {"shots": 5})
        assert reg.evaluations.predictions.load_predictions(11) == [
            Prediction(7, 1, "base", "p", "a", "g", -1.5, 3, 0.25, gold_tokens=None, scores=None)
        ]
        assert reg.evaluations.predictions.answered_methods(11) == ["base"] and reg.evaluations.fold_members(11) == []
        assert reg.evaluations.remove(11) == {"answers": 1, "banks": 0}
        assert reg.banks.by_id(3) == bank


def test_answers_and_users_of_schema_13_get_whose_they_are_and_groups(root: Path) -> None:
    older_store(root, "m014_ladder")
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


def test_stacks_of_an_older_store_keep_what_they_are_known_by(root: Path) -> None:
    older_store(root, "m005_cores")
    digests = ["a" * 64, "b" * 64]
    for digest, config in zip(digests, ('{"identity": "made so"}', "{}"), strict=True):
        sql(
            root,
            f"INSERT INTO adapters VALUES ('{digest}', 'stack', 'b', NULL, 2, 4.0, 'q', 'all', 'f', 0, '', 1,"
            f" '{config}', '{{}}', 0, 0, NULL, NULL, '2020')",
        )
    for statement in (
        "INSERT INTO users VALUES (7, 'alice', 1, '2020'), (8, 'bob', 1, '2020')",
        "INSERT INTO banks VALUES (3, 'free', 1, 'k', 'free', 'b', 'e', NULL, 'ready', 0, '{}', 5, 1.5, '2020', '')",
        f"INSERT INTO stacks VALUES (7, 'free', 3, '{digests[0]}', 5, 10, 2.5, 1.5, x'', 1, '2020')",
        f"INSERT INTO stacks VALUES (8, 'free', 3, '{digests[1]}', 5, 10, 2.5, 1.5, x'', 1, '2020')",
    ):
        sql(root, statement)
    with Registry.open(root) as reg:
        kept = Stack(7, "free", 3, digests[0], 5, 10, 2.5, 1.5, (), 1, "2020", identity="made so", numbers=None)
        assert reg.stacks.of_user(7) == [kept]
        assert reg.stacks.of_user(8)[0].identity == "" and reg.banks.by_id(3).basis is None


def test_checksums_of_rows_go_and_the_rows_stay(root: Path) -> None:
    older_store(root, "m008_integrity")
    for statement in (
        "INSERT INTO users VALUES (7, 'alice', 1, '2020', 12345)",
        "INSERT INTO items VALUES (9, 7, 'k', 'free', 'an old sentence', 'out', NULL, 678)",
        "INSERT INTO banks (id, name, version, key, task, base, embedder, seed, config, created, seal)"
        " VALUES (3, 'free', 1, 'k', 'free', 'b', 'e', 0, '{}', '2020', -1)",
        "INSERT INTO neighbours VALUES (3, 9, x'0102', 910)",
    ):
        sql(root, statement)
    with Registry.open(root) as reg:
        alice = reg.users.get("alice")
        assert [item.id for item in reg.items.search_items(alice.id, "free", "sentence", limit=1)] == [9]
        assert [one.vector for one in reg.neighbours.consenting_neighbours(3)] == [b"\1\2"]
        assert reg.check_integrity() == []
    assert not [row for row in structure(root) if "seal" in str(row[2])]


ADAPTERS = (b"task adapter free k", b"meta free k 0", b"meta free k 1", b"stack of ann", b"basis")


def store_of_schema_7(root: Path, next_migration: str) -> None:
    """The rows of `schema_7.sql` in a store before `next_migration`, as far as it has places for them."""
    older_store(root, next_migration)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as whole:
        migrations.apply(Database(whole, execute_plugins=False), stop_before="m008_integrity")
        whole.executescript((Path(__file__).parent / "schema_7.sql").read_text(encoding="utf-8"))
        with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as conn:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB '*sqlite*'"
            for (table,) in conn.execute(f"{tables} AND name NOT GLOB '*_fts*'").fetchall():
                columns = ", ".join(name for _, name, *_ in conn.execute(f"PRAGMA table_info({table})"))
                for row in whole.execute(f"SELECT {columns} FROM {table}"):
                    conn.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(row))})", row)


@pytest.mark.parametrize("next_migration", NAMES[3:8])
def test_what_refers_to_users_by_name_refers_to_them_by_key(root: Path, next_migration: str) -> None:
    store_of_schema_7(root, next_migration)
    with Registry.open(root) as reg:
        for content in ADAPTERS:
            reg.files.write(content)
        assert reg.check_integrity() == []
        ann, namesake = reg.users.get("Ann O'Hara"), reg.users.get("free v1")
        assert [(run.id, run.kind, run.subject) for run in reg.runs.all()] == [
            (6, "user export", "free v1"),
            (5, "eval run", "evaluation 1"),
            (4, "adaptation", "free v1"),
            (3, "adaptation", "free v1"),
            (2, "bank build", "free v1"),
            (1, "user adapt", "Ann O'Hara"),
        ]
        assert [run.id for run in reg.runs.of_user(ann.id)] == [1] and reg.runs.get(1).result == {"user": "Ann O'Hara"}
        assert [run.id for run in reg.runs.of_user(namesake.id)] == [6]
        assert [run.id for run in reg.runs.of_bank(1)] == [4, 3, 2] and len(reg.runs.of_evaluation(1)) == 1
        assert reg.runs.asked_users(3) == [namesake, ann] and reg.runs.asked_users(4) == []
        assert [reg.runs.get(number).config["asked"]["everybody"] for number in (3, 4)] == [False, True]
        assert [step.unit for step in reg.runs.steps(2)] == ["anchor 1", "task adapter"]
        assert reg.count_rows()["steps"] == 3
        sources = [message.source for message in reg.chats.messages(1)]
        assert [source.get("anchors") for source in sources] == [None, ["bob", "(forgotten)"], []]
        assert sources[1] | {"anchors": []} == {"mode": "fused", "bank": "free", "version": 1, "anchors": []}


@pytest.mark.parametrize("next_migration", NAMES[3:8])
def test_recipes_of_an_older_store_are_the_same_to_the_bit(root: Path, next_migration: str) -> None:
    store_of_schema_7(root, next_migration)
    with Registry.open(root) as reg:
        ann = reg.users.get("Ann O'Hara").id
        (recipe,), (stack,) = reg.recipes.of_user(ann), reg.stacks.of_user(ann)
        assert recipe.bytes == 12 and recipe.method == "similarity"
        assert pack_anchor_weights(recipe.shares).hex() == "020000000000403fcdcccc3d"
        assert pack_anchor_weights(stack.recipe).hex() == "010000000000003f0000803e020000000000003f0000803e"
        if NAMES.index(next_migration) > NAMES.index("m005_cores"):
            (core,) = reg.stacks.of_user(reg.users.get("free v1").id)
            assert reg.stacks.verified_numbers(core) == b"\x00\x3c\x00\xbc" and core.identity == "made so"
        reg.users.forget(ann)
        assert reg.count_rows()["recipe_anchors"] == 2 and reg._db.fetch_tuples("PRAGMA foreign_key_check") == []


def test_a_recipe_that_could_not_answer_is_not_taken_along(root: Path) -> None:
    store_of_schema_7(root, "m008_integrity")
    sql(root, "UPDATE recipes SET shares = x'00' WHERE user_id = 3")
    sql(root, "UPDATE recipes SET shares = x'090000000000003f0000803e' WHERE user_id = 4")
    with Registry.open(root) as reg:
        assert reg.count_rows()["recipes"] == reg.count_rows()["recipe_anchors"] == 0
        assert reg.count_rows()["stacks"] == 2


def test_a_store_with_a_broken_reference_is_left_as_it_was(root: Path) -> None:
    store_of_schema_7(root, "m008_integrity")
    with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as conn:
        migrations.apply(Database(conn, execute_plugins=False), stop_before="m009_relations")
    sql(root, "DELETE FROM users WHERE id = 3")
    before = structure(root)
    with pytest.raises(IntegrityFault, match="refers to a row of users that is not there") as caught:
        Registry.open(root)
    assert caught.value.hint == "restore the store from a copy"
    assert structure(root) == before and sql(root, "PRAGMA user_version") == [(8,)]


def test_tables_are_not_rebuilt_beside_foreign_keys(root: Path) -> None:
    """Dropping a table would delete what refers to it."""
    older_store(root, "m009_relations")
    with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(IntegrityFault, match="foreign keys are on"):
            migrations.apply(Database(conn, execute_plugins=False))


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
    older_store(root, "m009_relations")
    with closing(sqlite3.connect(root / "registry.db", isolation_level=None)) as older:
        older.execute("SELECT count(*) FROM items").fetchall()
        with pytest.raises(StoreBusy, match=rf"schema {SCHEMA_VERSION}.*has it open"):
            Registry.open(root, timeout=0.2)
        assert sql(root, "PRAGMA user_version") == [(8,)] and list(root.glob("registry.schema*")) == []
    Registry.open(root).close()
    assert sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("older", [True, False])
def test_many_first_commands_at_once_open_one_store(root: Path, older: bool) -> None:
    if older:
        older_store(root, "m009_relations")
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
    older_store(root, NAMES[1])
    before = structure(root)

    def fail_last(conn: sqlite3.Connection, script: str) -> None:
        execute_script(
            conn, "CREATE TABLE half (x);\nCREATE TABLE users (x);\n" if "new_eval_banks" in script else script
        )

    monkeypatch.setattr(steps, "execute_script", fail_last)
    for _ in range(2):
        with pytest.raises(IntegrityFault):
            Registry.open(root)
        assert structure(root) == before
        assert sql(root, "PRAGMA user_version") == [(1,)]
        assert [path.name for path in root.glob("registry.schema*")] == ["registry.schema1.db"]
    monkeypatch.undo()
    Registry.open(root).close()
    assert sql(root, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
