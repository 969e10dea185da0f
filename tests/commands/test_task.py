"""`mta task` from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from store.registry import Registry
from tests.shell import mta, mta_ok

MINE = 'name = "mine"\nprompt = "Say {input}"\nlabels = ["yes", "[/b]no"]\n'


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "store"))
    path = tmp_path / "mine.toml"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_built_in_tasks_need_no_store(file: Path) -> None:
    rows = mta_ok("task", "list", "--json").json()
    assert [row["name"] for row in rows] == list(BUILTIN_TASKS)
    assert {"kind", "metric", "description", "labels", "builtin", "users"} <= set(rows[0])
    shown = mta_ok("task", "show", "lamp-2", "--json").json()
    assert shown["labels"] == list(BUILTIN_TASKS["lamp-2"].labels)
    assert mta("task", "add", file).code == 3
    assert not (file.parent / "store").exists()


def test_a_task_is_added_shown_and_removed(file: Path) -> None:
    mta_ok("init")
    added = mta_ok("task", "add", file, "--json").json()
    assert (added["name"], added["added"], added["builtin"]) == ("mine", True, False)
    assert mta_ok("task", "add", file, "--json").json()["added"] is False
    assert "mine" in mta_ok("task", "list").out
    assert "[/b]no" in mta_ok("task", "show", "mine").out
    assert mta("task", "rm", "mine").code == 2, "nobody is there to answer"
    assert mta("task", "rm", "mine", stdin="n\n").code == 1
    asked = mta("task", "rm", "mine", stdin="y\n")
    assert asked.code == 0 and "No user has a history in this task." in asked.err
    assert mta("task", "show", "mine").code == 3
    assert mta("task", "rm", "mine", "--yes").code == 3
    assert mta("task", "rm", "free", "--yes").code == 4


def test_removing_a_task_says_which_models_cannot_answer(file: Path) -> None:
    with Registry.open(file.parent / "store", create=True) as reg:
        reg.tasks.save_task("mine", MINE)
        reg.banks.get_or_create_bank("moods", "key", "mine", "base", "embedder", 0, {})
    assert "Models on moods cannot answer until the task is added again." in mta("task", "rm", "mine").err


def test_a_task_file_can_be_begun_from_a_built_in_one(file: Path) -> None:
    mta_ok("init")
    text = mta_ok("task", "show", "lamp-3", "--toml").out
    file.write_text(text.replace('name = "lamp-3"', 'name = "stars"'), encoding="utf-8")
    mta_ok("task", "add", file)
    ours, theirs = (mta_ok("task", "show", name, "--json").json() for name in ("stars", "lamp-3"))
    assert {**ours, "name": "", "builtin": True} == {**theirs, "name": ""}


def test_every_fault_of_a_task_file_is_listed(file: Path) -> None:
    mta_ok("init")
    file.write_text('name = "A B"\nprompt = "no place"\nlabel = []\n', encoding="utf-8")
    refused = mta("task", "add", file)
    assert (refused.code, refused.out) == (4, "")
    assert "3 faults" in refused.err
    for words in (
        "name is 'A B'",
        "prompt does not contain {input}",
        "'label' is not a key of a task file; is it labels?",
    ):
        assert words in refused.err


def test_an_unknown_task_suggests_the_nearest(file: Path) -> None:
    refused = mta("task", "show", "lamp-22")
    assert refused.code == 3 and "lamp-2" in refused.err
