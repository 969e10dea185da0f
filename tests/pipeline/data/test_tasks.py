"""Tasks by name, and task files that are added to a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import BadInput, Command, IntegrityFault, NotFound, words_to_text
from mta_cli.pipeline.data.tasks import add_task, find_task, list_tasks, remove_task, task_json, task_names
from store.records import NewItem
from store.registry import Registry

MINE = 'name = "mine"\nprompt = "Say {input}"\n'


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE, encoding="utf-8")
    return path


def test_built_in_tasks_are_known_without_a_store() -> None:
    assert find_task(None, "lamp-2") is BUILTIN_TASKS["lamp-2"]
    assert task_names(None) == list(BUILTIN_TASKS)
    assert all(row["builtin"] and row["users"] == 0 for row in list_tasks(None))


@pytest.mark.parametrize(
    ("name", "near"), [("LaMP_2", "lamp-2"), ("lamp2", "lamp-2"), ("fre", "free"), ("minne", "mine")]
)
def test_an_unknown_task_names_the_nearest(reg: Registry, file: Path, name: str, near: str) -> None:
    add_task(reg, file)
    with pytest.raises(NotFound) as caught:
        find_task(reg, name)
    assert near in words_to_text(caught.value.hint or "")


@pytest.mark.parametrize("name", ["", "../x", "x" * 10_000, "\x1b[31m", "--help"])
def test_a_name_that_is_nothing_like_a_task(reg: Registry, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_task(reg, name)
    assert len(caught.value.message) < 200 and "\x1b" not in str(caught.value)


def test_adding_again_changes_nothing_and_a_change_is_refused(reg: Registry, file: Path) -> None:
    task, new = add_task(reg, file)
    assert new and find_task(reg, "mine") == task
    file.write_text(MINE + "# only a remark\n", encoding="utf-8")
    assert add_task(reg, file) == (task, False)
    file.write_text(MINE + "query_tokens = 9\n", encoding="utf-8")
    with pytest.raises(BadInput, match="already another task") as caught:
        add_task(reg, file)
    assert caught.value.hint == (
        "give your task another name, or remove the stored one with ",
        Command("task rm", "mine"),
    )
    assert find_task(reg, "mine") == task


def test_a_built_in_name_is_taken(reg: Registry, file: Path) -> None:
    file.write_text(MINE.replace("mine", "free"), encoding="utf-8")
    with pytest.raises(BadInput, match="built-in"):
        add_task(reg, file)
    with pytest.raises(BadInput, match="built in"):
        remove_task(reg, "free")


def test_removing_keeps_histories(reg: Registry, file: Path) -> None:
    add_task(reg, file)
    user = reg.users.add("ann")
    reg.items.append_items(user.id, [NewItem("1", "mine", "a", "b")])
    assert task_json(reg, "mine")["users"] == 1
    assert remove_task(reg, "mine") == {"task": "mine", "users": 1}
    with pytest.raises(NotFound):
        remove_task(reg, "mine")
    add_task(reg, file)
    assert task_json(reg, "mine")["users"] == 1


def test_all_tasks_are_listed_in_two_queries(reg: Registry, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_task(reg, file)
    for name in ("ann", "bob"):
        reg.items.append_items(reg.users.add(name).id, [NewItem(key, "mine", "a", "b") for key in "12"])
    asked: list[str] = []
    plain = reg._db.fetch_tuples
    monkeypatch.setattr(reg._db, "fetch_tuples", lambda sql, values=(): asked.append(sql) or plain(sql, values))
    rows = list(list_tasks(reg))
    assert {row["name"]: row["users"] for row in rows} == {**dict.fromkeys(BUILTIN_TASKS, 0), "mine": 2}
    assert len(asked) == 2


def test_a_stored_task_that_cannot_be_read_is_named_and_can_be_removed(reg: Registry) -> None:
    reg.tasks.save_task("mine", "colour = 3")
    with pytest.raises(IntegrityFault, match="'mine'") as caught:
        find_task(reg, "mine")
    assert caught.value.hint == (
        "remove it with ",
        Command("task rm", "mine"),
        ", then add it again with ",
        Command("task add", "FILE"),
    )
    remove_task(reg, "mine")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a task file"),
        (b"name = ", "not TOML"),
        (MINE.encode("utf-16"), "UTF-16"),
        (b'name = "\xff"', "not UTF-8"),
        (b"\x00", "not TOML"),
        (b"#" * 1_000_001, "characters"),
        (b"#" * 5_000_000, "bytes"),
    ],
)
def test_files_that_are_no_task_files(reg: Registry, file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(BadInput, match=words):
        add_task(reg, file)
    assert task_names(reg) == list(BUILTIN_TASKS)


def test_a_missing_file_and_a_directory(reg: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no file"):
        add_task(reg, tmp_path / "none.toml")
    with pytest.raises(BadInput, match="directory"):
        add_task(reg, tmp_path)


def test_a_byte_order_mark_is_no_fault(reg: Registry, file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + MINE.encode())
    assert add_task(reg, file)[1]
