"""People: adding them, what is held about them, their items."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_cli.errors import BadInput, NotFound
from mta_cli.pipeline.users.add import add_user
from mta_cli.pipeline.users.stored_data import describe_user, find_items, user_runs
from store.records import NewItem
from store.registry import Registry
from tests.pipeline.histories import imported, person, rows, run, tagged, write

BAD_NAMES = ["", " ", "--help", "-x", "x" * 10_000, "a\nb", "a\0b", "a\x1b[2Jb", "a\u202eb", "\u200fa", "\ud800"]


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as registry:
        yield registry


def test_add(reg: Registry) -> None:
    result, _ = run(add_user(reg, "../x", can_anchor=False))
    assert result == {"user": "../x", "added": True, "items_added": 0, "items_unchanged": 0}
    assert not reg.users.get("../x").can_anchor


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_cannot_be(reg: Registry, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        list(add_user(reg, name))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert reg.users.names() == []


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name.strip()])
def test_names_that_cannot_be_in_a_file(reg: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput) as caught:
        imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows(name, 1)))
    (fault,) = caught.value.faults
    assert fault.startswith("a.jsonl: record 1, field user: ")
    assert fault.isprintable()
    assert len(fault) < 300


def test_add_twice(reg: Registry) -> None:
    list(add_user(reg, "ann"))
    with pytest.raises(BadInput, match="already"):
        list(add_user(reg, "ann"))


def test_add_somebody_who_looks_like_somebody(reg: Registry) -> None:
    list(add_user(reg, "Ann"))
    _, notes = run(add_user(reg, "ann"))
    assert notes == [
        "'Ann' and 'ann' differ only in case, Unicode form or white space; they are imported as different users"
    ]


def test_add_with_an_unknown_task(reg: Registry) -> None:
    with pytest.raises(NotFound):
        list(add_user(reg, "ann", task="lamp-9"))
    assert reg.users.names() == []


@pytest.mark.parametrize("name", ["notes.jsonl", "notes.CSV", "notes.tsv"])
def test_add_with_a_history(reg: Registry, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("jsonl"):
        write(path, rows(None, 2))
    else:
        separator = "\t" if name.endswith("tsv") else ","
        path.write_text(
            "".join(separator.join(cells) + "\n" for cells in (["input", "output"], ["i", "o"], ["j", "p"]))
        )
    result, _ = run(add_user(reg, "ann", history=path, task="lamp-4"))
    assert result == {"user": "ann", "added": True, "task": "lamp-4", "items_added": 2, "items_unchanged": 0}
    again, _ = run(add_user(reg, "ann", history=path, task="lamp-4"))
    assert (again["added"], again["items_added"], again["items_unchanged"]) == (False, 0, 2)


def test_a_history_of_somebody_else(reg: Registry, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        list(add_user(reg, "ann", history=write(tmp_path / "a.jsonl", rows("bob"))))
    assert "'bob'" in caught.value.faults[0]
    assert reg.users.names() == []


def test_a_history_in_an_unknown_form(reg: Registry, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.jsonl"):
        list(add_user(reg, "ann", history=tmp_path / "notes.txt"))


def test_adding_dry(reg: Registry, tmp_path: Path) -> None:
    assert run(add_user(reg, "ann", dry_run=True))[0]["dry_run"]
    path = write(tmp_path / "a.jsonl", rows(None))
    assert run(add_user(reg, "ann", history=path, dry_run=True))[0]["items"] == 3
    assert reg.users.names() == []


def test_everything_held_is_described(reg: Registry, tmp_path: Path) -> None:
    imported(reg, "users", write(tmp_path / "u.json", [person("ann", 2, 1)]), task="lamp-2")
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann", 1)))
    chat = reg.chats.start_chat(reg.users.get("ann").id, "greetings")
    reg.chats.add_message(chat.id, "user", "good morning", {})
    held = describe_user(reg, "ann")
    assert (held["name"], held["can_anchor"]) == ("ann", True)
    assert {(each["task"], each["items"], each["queries"]) for each in held["tasks"]} == {
        ("lamp-2", 2, 1),
        ("free", 1, 0),
    }
    assert {each["input"] for each in held["items"]} >= {"film 0 about a lighthouse", "note 0"}
    assert [each["gold"] for each in held["queries"]] == ["action"]
    assert held["chats"][0]["messages"][0]["content"] == "good morning"
    assert held["recipes"] == held["stacks"] == held["anchors"] == held["profiles"] == held["runs"] == []


def test_runs_of_a_person(reg: Registry) -> None:
    list(add_user(reg, "ann"))
    run_of = reg.runs.start_run("adapt", {"shots": 5}, user_id=reg.users.get("ann").id)
    reg.runs.finish_run(run_of.id, {"loss_after": 1.5})
    (entry,) = user_runs(reg, "ann")
    assert (entry["kind"], entry["status"], entry["result"]) == ("adapt", "done", {"loss_after": 1.5})


def test_somebody_unknown_is_not_found_with_the_nearest_names(reg: Registry) -> None:
    list(add_user(reg, "alice"))
    for ask in (describe_user, user_runs, find_items):
        with pytest.raises(NotFound) as caught:
            ask(reg, "alcie")
        assert "alice" in caught.value.message + str(caught.value.hint)


def test_recent_items(reg: Registry, tmp_path: Path) -> None:
    content = [row | {"time": f"2026-01-{number + 1:02}"} for number, row in enumerate(rows("ann", 5))]
    imported(reg, "jsonl", write(tmp_path / "a.jsonl", content))
    assert [item.input for item in find_items(reg, "ann", limit=2)] == ["note 3", "note 4"]
    assert len(find_items(reg, "ann")) == 5
    assert find_items(reg, "ann", task="lamp-2") == []


def test_items_of_a_task_that_is_none(reg: Registry) -> None:
    user = reg.users.add("ann")
    reg.items.append_items(user.id, [NewItem("1", "once", "a kite", "red")])  # its task was removed since
    assert [item.input for item in find_items(reg, "ann", task="once")] == ["a kite"]
    assert [item.input for item in find_items(reg, "ann", task="once", search="kite")] == ["a kite"]
    for search in (None, "kite"):
        assert find_items(reg, "ann", task="lamp-2", search=search) == []
        with pytest.raises(NotFound, match="no task 'nope'"):
            find_items(reg, "ann", task="nope", search=search)


@pytest.mark.parametrize("text", ["lighthouse", "LIGHTHOUSE", 'light* OR "', "NEAR(", "lighthouse AND", "-lighthouse"])
def test_search_survives_any_text(reg: Registry, tmp_path: Path, text: str) -> None:
    history = [tagged(1), tagged(2, description="a train at night"), tagged(3, description="bread")]
    path = write(tmp_path / "u.json", [{"user_id": "ann", "profile": history}])
    imported(reg, "users", path, task="lamp-2")
    found = [item.key for item in find_items(reg, "ann", search=text, limit=1)]
    if "lighthouse" in text.lower():
        assert found == ["1"]


def test_search_finds_only_matches(reg: Registry, tmp_path: Path) -> None:
    imported(
        reg, "jsonl", write(tmp_path / "a.jsonl", rows("ann", 3) + rows("ann", 1, input="a red kite", task="lamp-4"))
    )
    assert [item.input for item in find_items(reg, "ann", search="kite")] == ["a red kite"]
    assert find_items(reg, "ann", search="zebra") == []
