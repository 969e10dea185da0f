"""Removing users and single items: no byte is left, and the parts that stay are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mta_cli.engine.text.task_files import task_to_toml
from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import Command, NotFound, UsageError, UserInUse
from mta_cli.events import JobPlan, JobResult
from mta_cli.pipeline.chat.conversation import add_exchange_as_item
from mta_cli.pipeline.data.kept_items import kept_from_chat_at
from mta_cli.pipeline.data.tasks import store_task
from mta_cli.pipeline.users.removal import plan_item_removal, plan_user_removal, remove_items, remove_user
from mta_cli.pipeline.users.serve_keys import FILE_NAME, KeyFile
from store.records import Item, Profile
from store.registry import Registry
from store.tables.predictions import Prediction
from tests.pipeline.histories import imported, person, rows, run, write
from tests.store.making import adapted, adapter, bank, item

SECRET = "the heron stood on one leg behind the old cannery"
LONG_AGO = "2000-01-01T00:00:00+00:00"


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


@pytest.fixture
def reg(fresh: Registry, tmp_path: Path) -> Registry:
    """Ann, with an item of a secret, and Bob."""
    imported(fresh, "jsonl", write(tmp_path / "a.jsonl", rows("ann", 5) + rows("bob", 300)))
    fresh.items.append_items(fresh.users.get("ann").id, [item("secret", SECRET, SECRET)])
    return fresh


def bytes_of(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_every_trace_of_a_user_goes(fresh: Registry, tmp_path: Path) -> None:
    name = "Quillfeather"
    imported(fresh, "jsonl", write(tmp_path / "a.jsonl", rows(name, 3, output=SECRET) + rows("bob", 300)))
    imported(fresh, "users", write(tmp_path / "u.json", [person(name)]), task="lamp-2")
    assert SECRET.encode() in bytes_of(fresh.root)
    result, _ = run(remove_user(fresh, name))
    assert (result["user"], result["items"], result["adapters_removed"], result["stale_anchors"]) == (name, 6, [], [])
    left = bytes_of(fresh.root)
    for trace in (name, SECRET, "cannery", "lighthouse", f"{name}-q0"):
        assert trace.encode() not in left
    assert fresh.users.names() == ["bob"]
    assert len(fresh.items.recent_items(fresh.users.get("bob").id, "free", None)) == 300


def test_anchors_of_them_are_named_and_stale(fresh: Registry, tmp_path: Path) -> None:
    imported(fresh, "jsonl", write(tmp_path / "a.jsonl", rows("ann") + rows("bob")))
    bank = fresh.banks.get_or_create_bank("tags", "key", "free", "sha256:base", "sha256:embedder", 0, {})
    anchors = fresh.banks.plan_anchors(
        bank.id, [(fresh.users.get(name).id, n, 1, 3) for n, name in enumerate(("ann", "bob"))]
    )
    (plan,) = (event for event in plan_user_removal(fresh, "ann") if isinstance(event, JobPlan))
    assert {line.name: line.value for line in plan.lines}["anchor of"] == "tags v1"
    result, notes = run(remove_user(fresh, "ann"))
    assert result["stale_anchors"] == [{"bank": "tags", "version": 1, "anchor": anchors[0].id}]
    assert any("the anchor of tags v1 that was trained on them is stale" in note for note in notes)
    assert any("mta bank rm tags --bank-version 1" in note for note in notes), "it is not ready, so not refreshed"
    assert [anchor.stale for anchor in fresh.banks.anchors(bank.id)] == [True, False]


def test_labels_that_only_they_gave_are_named_with_their_task(fresh: Registry, tmp_path: Path) -> None:
    task = replace(BUILTIN_TASKS["lamp-2"], name="moods", labels=("fine", "low", "odd"))
    store_task(fresh, task, task_to_toml(task))
    given = {"ann": ("fine", "low"), "bob": ("fine", "odd"), "cy": ("fine", "low")}
    history = [row for name, labels in given.items() for label in labels for row in rows(name, 1, output=label)]
    imported(fresh, "jsonl", write(tmp_path / "a.jsonl", history), task="moods")
    assert not any("moods" in note for note in run(remove_user(fresh, "ann"))[1]), "others gave them too"
    named = (
        "labels of task moods that only this user gave stay in the task: 'odd'; `mta task rm moods` removes the task"
    )
    assert named in run(remove_user(fresh, "bob"))[1]
    fresh.tasks.save_task("moods", "not a task")
    assert run(remove_user(fresh, "cy"))[0]["user"] == "cy"


def test_a_key_opens_no_later_user_of_the_name(fresh: Registry, tmp_path: Path) -> None:
    imported(fresh, "jsonl", write(tmp_path / "a.jsonl", rows("ann") + rows("bob")))
    path = fresh.root / FILE_NAME
    keys = KeyFile.read(path)
    keys.add("phone", ["ann", "bob"])
    keys.write(path)
    with fresh.hold_users("bank build", [fresh.users.get("ann").id]), pytest.raises(UserInUse):
        list(remove_user(fresh, "ann"))
    assert KeyFile.read(path).keys == keys.keys, "the user is still there"
    list(remove_user(fresh, "ann"))
    (key,) = KeyFile.read(path).keys
    assert key.users == (keys.name_hash("bob"),)


def test_the_plan_of_a_user_changes_nothing(fresh: Registry, tmp_path: Path) -> None:
    imported(fresh, "jsonl", write(tmp_path / "a.jsonl", rows("ann")))
    result, notes = run(plan_user_removal(fresh, "ann", as_notes=True))
    assert result == {"user": "ann", "dry_run": True}
    assert "history items: 3" in notes[0]
    assert fresh.users.names() == ["ann"]


def test_somebody_unknown(fresh: Registry) -> None:
    with pytest.raises(NotFound):
        list(remove_user(fresh, "nobody"))


def keys(reg: Registry, name: str = "ann") -> list[str]:
    return [one.key for one in reg.items.recent_items(reg.users.get(name).id, "free")]


def items_of(reg: Registry) -> list[Item]:
    return reg.items.recent_items(reg.users.get("ann").id, "free")


def profile(reg: Registry, last_item: int, content: bytes = SECRET.encode()) -> None:
    reg.profiles.save_profile(Profile(reg.users.get("ann").id, "free", "e", content, 6, last_item))


def test_no_byte_of_an_item_is_left(reg: Registry) -> None:
    ann = reg.users.get("ann")
    reg.files.write_checkpoint("stack of ann", SECRET.encode())
    profile(reg, items_of(reg)[-1].id)
    evaluation = reg.evaluations.add_evaluation("free", None, {}, {})
    shown = Prediction(ann.id, 1, "rag", SECRET, "a", "g", -1.0, 3, 0.1)
    reg.evaluations.predictions.add_predictions(evaluation, [shown])
    assert bytes_of(reg.root).count(SECRET.encode()) > 3
    result, _ = run(remove_items(reg, "ann", ["secret"]))
    assert (result["user"], result["task"], result["items"]) == ("ann", "free", ["secret"])
    for trace in (SECRET, "cannery", "secret"):
        assert trace.encode() not in bytes_of(reg.root)
    assert reg.profiles.get(ann.id, "free", "e") is None, "it is computed again from what is left"
    assert len(keys(reg)) == 5 and len(keys(reg, "bob")) == 300
    assert reg.items.search_items(ann.id, "free", "heron", limit=5, fill=False) == []
    assert reg.check_integrity() == []


def test_what_was_made_from_it_goes_and_anchors_are_stale(reg: Registry) -> None:
    ann, bob = reg.users.get("ann"), reg.users.get("bob")
    made = bank(reg, [ann.id, bob.id])
    assert made.task_adapter is not None
    reg.banks.set_task_adapter(made.id, made.task_adapter, [ann.id, bob.id])
    adapted(reg, ann.id, made, b"the stack of ann")
    adapted(reg, bob.id, made, b"the stack of bob")
    mine, others = reg.banks.anchors(made.id)
    result, notes = run(remove_items(reg, "ann", ["secret"]))
    assert (result["recipes"], result["stacks"], len(result["adapters_removed"])) == (1, 1, 1)
    assert result["stale_anchors"] == [{"bank": "free", "version": 1, "anchor": mine.id}]
    assert result["resting"] == [{"user": "bob", "bank": "free", "version": 1}]
    assert result["task_adapters"] == [{"bank": "free", "version": 1}]
    assert [anchor.stale for anchor in reg.banks.anchors(made.id)] == [True, False]
    assert reg.stacks.of_user(bob.id) and reg.recipes.of_user(bob.id)
    assert any("mta user adapt ann --task free" in note for note in notes)
    assert any("trained on the removed items" in note for note in notes)
    assert others.digest is not None


def test_what_is_older_than_a_kept_exchange_stays(reg: Registry) -> None:
    """A stray /good costs nothing that was trained before it."""
    ann = reg.users.get("ann")
    made = bank(reg, [ann.id])
    assert made.task_adapter is not None
    reg.banks.set_task_adapter(made.id, made.task_adapter, [ann.id])
    stack = adapted(reg, ann.id, made)
    with reg.transaction():
        for table in ("adapters", "recipes", "stacks"):
            reg._db.execute_write(f"UPDATE {table} SET created = ?", (LONG_AGO,))
    profile(reg, items_of(reg)[-1].id)
    key = add_exchange_as_item(reg, ann, "free", "who?", "me").name
    result, notes = run(remove_items(reg, "ann", [key]))
    assert (result["recipes"], result["stacks"], result["stale_anchors"]) == (0, 0, [])
    assert result["task_adapters"] == []
    assert reg.stacks.get(ann.id, "free", made.id) is not None and stack.digest
    assert reg.profiles.get(ann.id, "free", "e") is not None
    assert key not in keys(reg) and len(notes) == 1


def test_what_is_later_than_a_kept_exchange_goes(reg: Registry) -> None:
    ann = reg.users.get("ann")
    key = add_exchange_as_item(reg, ann, "free", "who?", "me").name
    (kept,) = reg.items.items_with_keys(ann.id, [key])
    assert kept_from_chat_at(kept) == kept.time
    adapted(reg, ann.id, bank(reg, [ann.id]))
    result, _ = run(remove_items(reg, "ann", [key]))
    assert (result["recipes"], result["stacks"], len(result["stale_anchors"])) == (1, 1, 1)


@pytest.mark.parametrize("goes_on", [True, False])
def test_an_evaluation_that_was_at_work_when_an_exchange_was_kept_loses_its_bank(reg: Registry, goes_on: bool) -> None:
    ann = reg.users.get("ann")
    evaluation = reg.evaluations.get_or_create_evaluation("key", "free", {}, [(0, ann.id, "bank")])
    run_of_it = reg.runs.start_run("eval run", {}, evaluation_id=evaluation.id)
    made = bank(reg, [ann.id], name="eval free", purpose="eval")
    reg.evaluations.set_fold_bank(evaluation.id, 0, made.id)
    reg.runs.finish_run(run_of_it.id, {})
    with reg.transaction():
        reg._db.execute_write("UPDATE evaluations SET created = ?", (LONG_AGO,))
        if not goes_on:
            reg._db.execute_write("UPDATE runs SET ended = ?", (LONG_AGO,))
    run(remove_items(reg, "ann", [add_exchange_as_item(reg, ann, "free", "who?", "me").name]))
    assert (made.id in [one.id for one in reg.banks.all(with_evaluations=True)]) is not goes_on


def test_only_the_program_s_own_keys_tell_a_time(reg: Registry) -> None:
    ann = reg.users.get("ann")
    reg.items.append_items(ann.id, [item("chat-0123456789abcdef", "who?", "me", time="2100-01-01T00:00:00")])
    (kept,) = reg.items.items_with_keys(ann.id, ["chat-0123456789abcdef"])
    assert kept_from_chat_at(kept) == ""


def test_other_tasks_of_the_user_stay(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "users", write(tmp_path / "u.json", [person("ann")]), task="lamp-2")
    ann = reg.users.get("ann")
    made = bank(reg, [ann.id], name="tags", task="lamp-2")
    adapted(reg, ann.id, made, task="lamp-2")
    result, _ = run(remove_items(reg, "ann", ["secret"]))
    assert (result["stacks"], result["stale_anchors"]) == (0, [])
    assert reg.stacks.get(ann.id, "lamp-2", made.id) is not None


def test_all_or_none_and_one_task(reg: Registry) -> None:
    ann = reg.users.get("ann")
    before = keys(reg)
    with pytest.raises(NotFound, match="no item with the id nix") as missing:
        run(remove_items(reg, "ann", ["secret", "nix"]))
    assert missing.value.hint == (Command("user items", "ann"), " shows the ids")
    assert keys(reg) == before
    reg.items.append_items(ann.id, [item("secret", task="lamp-2")])
    with pytest.raises(UsageError, match="several tasks: free, lamp-2"):
        run(remove_items(reg, "ann", ["secret"]))
    run(remove_items(reg, "ann", ["secret", "secret"], task="lamp-2"))
    assert keys(reg) == before
    with pytest.raises(NotFound, match="no item of lamp-2"):
        run(remove_items(reg, "ann", ["secret"], task="lamp-2"))


def test_not_beside_a_job_that_uses_them(reg: Registry) -> None:
    with reg.hold_users("bank build", [reg.users.get("ann").id]), pytest.raises(UserInUse, match="bank build"):
        run(remove_items(reg, "ann", ["secret"]))
    assert "secret" in keys(reg)


def test_what_a_job_makes_before_the_removal_is_counted(reg: Registry) -> None:
    ann = reg.users.get("ann")
    with reg.hold_users("user adapt", [ann.id]):
        job = remove_items(reg, "ann", ["secret"], wait=True)
        assert "Waiting for its end" in str(next(job))
        adapted(reg, ann.id, bank(reg, [ann.id]))
    *_, done = job
    assert isinstance(done, JobResult) and (done.result["recipes"], done.result["stacks"]) == (1, 1)


def test_the_plan_changes_nothing(reg: Registry) -> None:
    adapted(reg, reg.users.get("ann").id, bank(reg, [reg.users.get("ann").id]))
    events = list(plan_item_removal(reg, "ann", ["secret"], as_notes=True))
    (plan,) = (event for event in events if isinstance(event, JobPlan))
    assert {line.name: line.value for line in plan.lines} == {
        "item secret": f"free: {SECRET} → {SECRET}",
        "recipes": "1",
        "stacks": "1",
        "anchor of": "free v1",
    }
    assert "secret" in keys(reg) and reg.stacks.of_user(reg.users.get("ann").id)


def test_a_crash_before_the_bytes_are_overwritten_is_made_up_for(
    reg: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reg._eraser, "purge_deleted_bytes", crash)
    with pytest.raises(KeyboardInterrupt):
        run(remove_items(reg, "ann", ["secret"]))
    root = reg.root
    reg.close()
    Registry.open(root).close()
    assert b"cannery" not in bytes_of(root)


def test_an_adapter_that_another_stack_uses_stays(reg: Registry) -> None:
    ann, bob = reg.users.get("ann"), reg.users.get("bob")
    made = bank(reg, [bob.id])
    adapted(reg, ann.id, made, b"one content")
    adapted(reg, bob.id, made, b"one content")
    result, _ = run(remove_items(reg, "ann", ["secret"]))
    assert result["adapters_removed"] == []
    assert reg.adapters.verified_path(adapter(reg, b"one content", kind="stack")).exists()
