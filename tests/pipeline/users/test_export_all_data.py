"""The export of a user's data: every table about the user, atomically; no name becomes a path."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, IntegrityFault, NotFound
from mta_cli.pipeline.users.export_all_data import FILE_DESCRIPTIONS, export_all_data
from mta_cli.pipeline.users.exported_folders import exports_of
from mta_cli.pipeline.users.removal import plan_user_removal, remove_user
from store.records import REFUSED_USERS_KEY, Profile
from store.registry import Registry
from tests.pipeline.histories import run
from tests.store.making import adapted, bank, person
from tests.store.test_erase import NAME, SECRET, evaluated, furnish

# The place of each table's rows in the export. A new table about users must be added here and to the export.
HELD = {
    "user_groups": "person",
    "items": "items",
    "queries": "queries",
    "profiles": "profiles",
    "task_adapter_users": "person",
    "anchors": "anchors",
    "recipes": "recipes",
    "recipe_anchors": "recipes",
    "stacks": "stacks",
    "stack_anchors": "stacks",
    "neighbours": "neighbours",
    "chats": "chats",
    "messages": "chats",
    "message_anchors": "chats",
    "runs": "runs",
    "run_users": "runs",
    "steps": "runs",
    "eval_people": "evaluations",
    "cells": "evaluations",
    "predictions": "evaluations",
}


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


def given(reg: Registry, to: Path, name: str = NAME) -> dict[str, Any]:
    """Export a user's data; returns the documents by their names."""
    run(export_all_data(reg, name, to))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in to.glob("*.json")}


def lived(reg: Registry) -> int:
    """A user with rows in every table; returns their number."""
    me, other = furnish(reg)
    reg.profiles.save_profile(Profile(me, "free", "e", struct.pack("<3f", 1.0, 2.0, 0.5), 50, 250))
    cores = bank(reg, [other], key="cores")
    stack = adapted(reg, me, cores, b"the basis of all")
    reg.stacks.save_stack(replace(stack, numbers=struct.pack("<2e", 0.5, -1.0), bytes=4))
    reg.neighbours.add_neighbours(
        cores.id, [(reg.items.recent_items(me, "free", 1)[0].id, struct.pack("<2e", 0.25, 1.0))]
    )
    measured = bank(reg, [other, me], name="eval free", key="eval", purpose="eval")
    reg.banks.set_task_adapter(measured.id, str(measured.task_adapter), [me])
    evaluated(reg, "a design", bank=(other,), test=(me,), made=measured.id)
    mine = reg.runs.of_user(me)[0]
    reg.runs.finish_run(mine.id, {"loss_after": float("nan")})
    return me


def test_everything_that_tables_hold_of_a_person_is_there(reg: Registry, tmp_path: Path) -> None:
    me = lived(reg)
    refusing = reg.banks.get("free")
    reg.banks.set_bank_config(refusing.id, {**refusing.config, REFUSED_USERS_KEY: [me]})
    held = given(reg, tmp_path / "mine")
    assert held["person"]["name"] == NAME and held["person"]["can_anchor"] is True
    assert held["person"]["refused_by"] == [{"bank": "free", "version": refusing.version}]
    assert (len(held["items"]), len(held["queries"])) == (50, 1) and held["items"][0]["output"] == SECRET
    assert held["profiles"] == [{"task": "free", "embedder": "e", "items": 50, "vector": [1.0, 2.0, 0.5]}]
    assert [each["anchors"][0]["user"] for each in held["recipes"]] == ["bob", NAME]
    core, lora = held["stacks"]
    assert (core["kind"], core["numbers"], core["file"]) == ("core", [0.5, -1.0], None)
    assert lora["kind"] == "lora" and (tmp_path / "mine" / lora["file"]).read_bytes() == SECRET.encode()
    measuring, anchor = held["anchors"]
    assert measuring["bank"] == "eval free" and (tmp_path / "mine" / measuring["file"]).is_file()
    assert {"bank": "eval free", "version": 1} in held["person"]["task_adapters"]
    assert anchor["resting"] == [NAME, "bob"] and (tmp_path / "mine" / anchor["file"]).is_file()
    assert [(each["bank"], each["vector"]) for each in held["neighbours"]] == [("free", [0.25, 1.0])]
    assert {said["content"] for chat in held["chats"] for said in chat["messages"]} == {SECRET}
    stored, designed = held["evaluations"]["answers"]
    assert (stored["fold"], stored["prompt"]) == (None, SECRET) and designed["settings"] == {"steps": 1}
    assert held["evaluations"]["roles"][0]["role"] == "test" and held["evaluations"]["made"][0]["bytes"] == 9
    (about,) = held["runs"]["about"]
    assert about["result"] == {"loss_after": None} and about["steps"][0]["unit"] == NAME
    assert len(held["runs"]["named_in"]) == 1 and set(held["runs"]["named_in"][0]) == {
        "id",
        "kind",
        "status",
        "started",
        "ended",
    }
    assert me and set(held) == {name.removesuffix(".json") for name in FILE_DESCRIPTIONS}


def test_no_table_that_belongs_to_somebody_is_left_out(reg: Registry) -> None:
    """Every table that refers to users, or to something of theirs, has its place."""
    known, grew = {"users"}, True
    tables = [row["name"] for row in reg._db.fetch_dicts("SELECT name FROM sqlite_master WHERE type = 'table'")]
    theirs = {
        table: {row["table"] for row in reg._db.fetch_dicts(f"PRAGMA foreign_key_list({table})")} for table in tables
    }
    while grew:
        more = {table for table, parents in theirs.items() if parents & known} - known
        known, grew = known | more, bool(more)
    assert known - {"users", "job_users"} == set(HELD), "who a running job uses is gone with the job"
    assert set(HELD.values()) <= {name.removesuffix(".json") for name in FILE_DESCRIPTIONS}


def test_each_key_of_each_file_is_explained(reg: Registry, tmp_path: Path) -> None:
    lived(reg)
    held = given(reg, tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    for name, what in FILE_DESCRIPTIONS.items():
        assert f"`{name}`: {what}" in card
        document = held[name.removesuffix(".json")]
        parts = document if isinstance(document, dict) and name != "person.json" else {"": [document]}
        entries = [entry for part in parts.values() for entry in part]
        entries = [inner for entry in entries for inner in (entry if isinstance(entry, list) else [entry])]
        for key in {key for entry in entries for key in entry} - {"id", "kind", "subject", "status", "started"}:
            words = key.replace("loss_", "losses ").replace("heldout_", "losses ").split()[0]
            assert words in what or key in ("ended", "error"), f"{name}: {key}"


def test_the_same_words_as_others_see_of_others_are_not_in_it(reg: Registry, tmp_path: Path) -> None:
    lived(reg)
    given(reg, tmp_path / "mine")
    written = b"".join(path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file())
    assert SECRET.encode() in written and b"plain words" not in written and b"near " not in written


def test_names_are_no_paths(reg: Registry, tmp_path: Path) -> None:
    person(reg, "../../x", "a")
    given(reg, tmp_path / "here" / "mine", "../../x")
    files = sorted(str(path.relative_to(tmp_path / "here")) for path in (tmp_path / "here").rglob("*"))
    assert files == sorted(["mine", *(f"mine/{name}" for name in (*FILE_DESCRIPTIONS, "README.md"))])


@pytest.mark.parametrize(("place", "reason"), [("~nosuchuser/x", "home directory"), ("x" * 300, "too long")])
def test_what_can_be_no_folder_is_refused(reg: Registry, place: str, reason: str) -> None:
    person(reg, "ann", "a")
    with pytest.raises(BadInput, match=reason) as caught:
        run(export_all_data(reg, "ann", Path(place)))
    assert caught.value.hint and caught.value.message.isprintable() and len(caught.value.message) < 300
    assert exports_of(reg, reg.users.get("ann")) == []


def test_a_folder_with_something_in_it_is_kept(reg: Registry, tmp_path: Path) -> None:
    person(reg, "ann", "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        run(export_all_data(reg, "ann", tmp_path / "full"))
    with pytest.raises(BadInput, match="is a file"):
        run(export_all_data(reg, "ann", tmp_path / "full" / "letter.txt"))
    with pytest.raises(NotFound):
        run(export_all_data(reg, "nobody", tmp_path / "new"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"] and not (tmp_path / "new").exists()
    assert exports_of(reg, reg.users.get("ann")) == []
    for inside in (reg.root / "mine", tmp_path / "empty" / ".." / reg.root.name / "adapters"):
        with pytest.raises(BadInput, match="lies in the store"):
            run(export_all_data(reg, "ann", inside))
    (tmp_path / "empty").mkdir()
    assert given(reg, tmp_path / "empty", "ann")["person"]["name"] == "ann"
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o700, "for its owner alone"


def test_a_write_that_fails_leaves_nothing(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lived(reg)
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mta_cli.pipeline.users.exported_folders.os.fsync", full)
        with pytest.raises(BadInput, match="No space left"):
            run(export_all_data(reg, NAME, tmp_path / "disk" / "mine"))
    assert list((tmp_path / "disk").iterdir()) == []
    assert exports_of(reg, reg.users.get(NAME)) == []


@pytest.mark.parametrize("then", ["another export", "removal"])
def test_what_a_killed_export_left_goes(reg: Registry, tmp_path: Path, then: str) -> None:
    person(reg, "ann", SECRET)
    script = f"""
import os
from pathlib import Path
from mta_cli.pipeline.users import export_all_data, exported_folders
from store.registry import Registry
exported_folders.sync_file = lambda _: os._exit(9)
list(export_all_data.export_all_data(Registry.open(Path({str(reg.root)!r})), "ann", Path({str(tmp_path / "mine")!r})))
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    (tmp_path / ".letter.tmp").write_text("not ours")
    assert len(list(tmp_path.iterdir())) == 3
    if then == "removal":
        run(remove_user(reg, "ann"))
    else:
        given(reg, tmp_path / "other", "ann")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"store", ".letter.tmp"} | ({"other"} if then != "removal" else set())


def test_a_damaged_adapter_is_no_export(reg: Registry, tmp_path: Path) -> None:
    me = lived(reg)
    digest = next(stack.digest for stack in reg.stacks.of_user(me) if stack.numbers is None)
    path = reg.files.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"other")
    with pytest.raises(IntegrityFault, match=digest):
        run(export_all_data(reg, NAME, tmp_path / "mine"))
    assert not (tmp_path / "mine").exists()


def test_exports_are_remembered_and_named_when_somebody_is_forgotten(reg: Registry, tmp_path: Path) -> None:
    lived(reg)
    for name in ("a", "b", "a"):
        given(reg, tmp_path / name)
        for path in sorted((tmp_path / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    where = [str(tmp_path / "a"), str(tmp_path / "b")]
    lines = {line.name: line.value for event in plan_user_removal(reg, NAME) for line in getattr(event, "lines", ())}
    assert lines["exports, which stay"] == ", ".join(where)
    assert lines["recipes and stacks that rest on it"] == "bob"
    result, notes = run(remove_user(reg, NAME))
    assert result["exports"] == where and all(any(place in note for note in notes) for place in where)
    assert {(each["user"], each["bank"]) for each in result["resting"]} == {("bob", "free")}
    assert any("depend on stale anchors: bob" in note for note in notes)
    left = b"".join(path.read_bytes() for path in reg.root.rglob("*") if path.is_file())
    assert where[1].encode() not in left and NAME.encode() not in left
