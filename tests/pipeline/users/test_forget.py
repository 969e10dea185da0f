"""Forgetting a person: nothing of them is left in any file of the store, and stale anchors are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.engine.text.task_files import task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import NotFound, UserInUse
from mta_cli.events import JobPlan
from mta_cli.pipeline.data.tasks import keep_task
from mta_cli.pipeline.users.forget import forget_user, plan_forget
from mta_cli.pipeline.users.serve_keys import FILE_NAME, KeyFile
from store.registry import Registry
from tests.pipeline.histories import imported, person, rows, run, write

SECRET = "the heron stood on one leg behind the old cannery"


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


def bytes_of(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_every_trace_goes(reg: Registry, tmp_path: Path) -> None:
    name = "Quillfeather"
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows(name, 3, output=SECRET) + rows("bob", 300)))
    imported(reg, "users", write(tmp_path / "u.json", [person(name)]), task="lamp-2")
    assert SECRET.encode() in bytes_of(reg.root)
    result, _ = run(forget_user(reg, name))
    assert (result["user"], result["items"], result["adapters_removed"], result["stale_anchors"]) == (name, 6, [], [])
    left = bytes_of(reg.root)
    for trace in (name, SECRET, "cannery", "lighthouse", f"{name}-q0"):
        assert trace.encode() not in left
    assert reg.users.names() == ["bob"]
    assert len(reg.items.recent_items(reg.users.get("bob").id, "free", None)) == 300


def test_anchors_of_them_are_named_and_stale(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann") + rows("bob")))
    bank = reg.banks.get_or_create_bank("tags", "key", "free", "sha256:base", "sha256:embedder", 0, {})
    anchors = reg.banks.plan_anchors(
        bank.id, [(reg.users.get(name).id, n, 1, 3) for n, name in enumerate(("ann", "bob"))]
    )
    (plan,) = (event for event in plan_forget(reg, "ann") if isinstance(event, JobPlan))
    assert {line.name: line.value for line in plan.lines}["anchor of"] == "tags v1"
    result, notes = run(forget_user(reg, "ann"))
    assert result["stale_anchors"] == [{"bank": "tags", "version": 1, "anchor": anchors[0].id}]
    assert any("the anchor of tags v1 that was trained on them is stale" in note for note in notes)
    assert any("mta bank rm tags --bank-version 1" in note for note in notes), "it is not ready, so not refreshed"
    assert [anchor.stale for anchor in reg.banks.anchors(bank.id)] == [True, False]


def test_labels_that_only_they_gave_are_named_with_their_task(reg: Registry, tmp_path: Path) -> None:
    task = replace(BUILTIN_TASKS["lamp-2"], name="moods", labels=("fine", "low", "odd"))
    keep_task(reg, task, task_to_toml(task))
    given = {"ann": ("fine", "low"), "bob": ("fine", "odd"), "cy": ("fine", "low")}
    history = [row for name, labels in given.items() for label in labels for row in rows(name, 1, output=label)]
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", history), task="moods")
    assert not any("moods" in note for note in run(forget_user(reg, "ann"))[1]), "others gave them too"
    named = "labels of task moods that only they gave stay in it: 'odd'; `mta task rm moods` removes the task"
    assert named in run(forget_user(reg, "bob"))[1]
    reg.tasks.save_task("moods", "not a task")
    assert run(forget_user(reg, "cy"))[0]["user"] == "cy"


def test_a_key_opens_no_later_user_of_the_name(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann") + rows("bob")))
    path = reg.root / FILE_NAME
    keys = KeyFile.read(path)
    keys.add("phone", ["ann", "bob"])
    keys.write(path)
    with reg.hold_users("bank build", [reg.users.get("ann").id]), pytest.raises(UserInUse):
        list(forget_user(reg, "ann"))
    assert KeyFile.read(path).keys == keys.keys, "the user is still there"
    list(forget_user(reg, "ann"))
    (key,) = KeyFile.read(path).keys
    assert key.users == (keys.name_hash("bob"),)


def test_the_plan_changes_nothing(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann")))
    result, notes = run(plan_forget(reg, "ann", as_notes=True))
    assert result == {"user": "ann", "dry_run": True}
    assert "history items: 3" in notes[0]
    assert reg.users.names() == ["ann"]


def test_somebody_unknown(reg: Registry) -> None:
    with pytest.raises(NotFound):
        list(forget_user(reg, "nobody"))
