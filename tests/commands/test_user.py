"""`mta user` and `mta data` from the outside: JSON, exit codes, and what is said to whom."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mta_cli.app import run_command_line
from store.registry import Registry
from tests.pipeline.histories import person, rows, write

NOTHING_LEFT: dict[str, list[str]] = {"stale_anchors": [], "resting": [], "task_adapters": [], "exports": []}
Mta = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mta:
    """Runs a command line on a store of its own: (exit code, standard output, standard error)."""
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    Registry.open(tmp_path / "store", create=True).close()

    def call(*words: str) -> tuple[int, str, str]:
        code = run_command_line(words)
        text = capsys.readouterr()
        return code, text.out, text.err

    return call


def answer(mta: Mta, *words: str) -> Any:
    code, out, err = mta(*words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_import_and_list(mta: Mta, tmp_path: Path) -> None:
    write(tmp_path / "users.json", [person("ann", 3, 2), person("bob", 1, 0)])
    result = answer(mta, "data", "import", "users", "users.json", "--task", "lamp-2")
    assert (result["users"], result["items_added"], result["queries_added"]) == (2, 4, 2)
    (ann, bob) = answer(mta, "user", "list")
    assert ann == {
        "name": "ann",
        "items": 3,
        "queries": 2,
        "task": "lamp-2",
        "status": "new",
        "stack_bytes": 0,
        "can_anchor": True,
        "bases": {},
        "group": None,
    }
    assert (bob["name"], bob["queries"]) == ("bob", 0)
    assert answer(mta, "user", "list", "--task", "lamp-4") == [] or all(
        each["items"] == 0 for each in answer(mta, "user", "list", "--task", "lamp-4")
    )
    code, out, _ = mta("user", "list")
    assert code == 0
    assert "ann" in out
    assert "lamp-2" in out


def test_a_list_is_filtered_as_in_the_window_and_cut(mta: Mta, tmp_path: Path) -> None:
    write(tmp_path / "users.json", [person(f"user {n}", n) for n in range(5)])
    answer(mta, "data", "import", "users", "users.json", "--task", "lamp-2")
    assert [each["name"] for each in answer(mta, "user", "list", "--filter", "items>2")] == ["user 3", "user 4"]
    assert [each["name"] for each in answer(mta, "user", "list", "--limit", "1")] == ["user 0"]
    code, out, _ = mta("user", "list", "--filter", "task:lamp-2 items>1", "--limit", "2")
    assert code == 0 and [line.split()[1] for line in out.splitlines()[2:]] == ["2", "3"]
    assert mta("user", "list", "--limit", "0")[0] == 2


def test_import_from_standard_input(mta: Mta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Path] = []
    monkeypatch.setattr(
        "mta_cli.pipeline.users.import_file.import_source",
        lambda reg, source, **_: given.append(source.path) or iter(()),
    )
    mta("data", "import", "jsonl", "-")
    assert given == [Path("/dev/stdin")]


def test_dry_run(mta: Mta, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows())
    plan = answer(mta, "data", "import", "jsonl", "a.jsonl", "--dry-run")
    assert (plan["items"], plan["users"]) == (3, 1)
    assert {line["name"] for line in plan["plan"]} >= {"file", "format", "users", "history items"}
    assert answer(mta, "user", "list") == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["data", "import", "jsonl", "none.jsonl"], 3, "There is no file"),
        (["data", "import", "xml", "a.jsonl"], 2, "choose one of lamp, users, mbox, "),
        (["data", "import", "jsonl", "bad.jsonl"], 4, "bad.jsonl: record 1, field output: is empty"),
        (["data", "import", "jsonl", "a.jsonl", "--task", "lamp-22"], 3, "lamp-2"),
        (["user", "show", "alcie"], 3, "alice"),
        (["user", "history", "alcie"], 3, "alice"),
        (["user", "items", "alcie"], 3, "alice"),
        (["user", "rm", "alcie", "--yes"], 3, "alice"),
        (["user", "show", "--", "--help"], 3, "--help"),
        (["user", "show", "../x"], 3, "../x"),
        (["user", "add", "--", "--help"], 4, "--help"),
        (["user", "add", ""], 4, "name"),
        (["user", "add", "a\nb"], 4, "name"),
        (["user", "add", "a\x1b[2Jb"], 4, "name"),
        (["user", "add", "alice"], 4, "already"),
        (["user", "add", "x" * 10_000], 4, "200"),
        (["user", "items", "alice", "--limit", "0"], 2, "limit"),
        (["user", "list", "--task", "lamp-22"], 3, "lamp-2"),
        (["user", "items", "alice", "--task", "lamp-22"], 3, "lamp-2"),
        (["user", "items", "alice", "--rm", "x", "--yes"], 3, "no item with the id x"),
        (["user", "items", "alice", "--rm", "x", "--search", "y"], 2, "--search and --limit"),
        (["user", "items", "alice", "--rm", "x", "--limit", "3"], 2, "--search and --limit"),
        (["user", "items", "alice", "--yes"], 2, "--rm ID"),
        (["user", "consent", "--can-anchor"], 2, "--all"),
        (["user", "consent", "alice", "--all", "--can-anchor"], 2, "one user or --all"),
        (["user", "consent", "alice", "--task", "free", "--can-anchor"], 2, "--task can only be given with --all"),
        (["user", "consent", "--all", "--task", "lamp-22", "--can-anchor"], 3, "lamp-2"),
        (["user", "consent", "--all", "--task", "free", "--can-anchor"], 3, "No user has items of task free"),
    ],
)
def test_what_goes_wrong(mta: Mta, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    write(tmp_path / "a.jsonl", rows())
    write(tmp_path / "bad.jsonl", [{"user": "ann", "input": "i", "output": ""}])
    assert mta("user", "add", "alice")[0] == 0
    got, out, err = mta(*words)
    assert (got, out) == (code, "")
    assert said in err
    assert "\x1b" not in err
    assert "Traceback" not in err


def test_add_show_and_items(mta: Mta, tmp_path: Path) -> None:
    write(tmp_path / "notes.jsonl", rows(None, 4))
    assert answer(mta, "user", "add", "alice", "--history", "notes.jsonl")["items_added"] == 4
    assert answer(mta, "user", "add", "alice", "--history", "notes.jsonl")["items_unchanged"] == 4
    held = answer(mta, "user", "show", "alice")
    assert held["tasks"] == [{"task": "free", "items": 4, "queries": 0}]
    code, out, _ = mta("user", "show", "alice")
    assert code == 0
    assert "4 items, 0 queries" in out
    found = answer(mta, "user", "items", "alice", "--limit", "2")
    assert [each["input"] for each in found] == ["note 2", "note 3"]
    assert [each["input"] for each in answer(mta, "user", "items", "alice", "--search", "note 1", "--limit", "1")] == [
        "note 1"
    ]
    assert "note 3" in mta("user", "items", "alice")[1]


def test_show_reads_texts_only_for_json(mta: Mta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "users.json", [person("ann", 3, 2)])
    answer(mta, "data", "import", "users", "users.json", "--task", "lamp-2")
    shown = answer(mta, "user", "show", "ann")
    assert (len(shown["items"]), len(shown["queries"])) == (3, 2)
    for reader in ("recent_items", "queries"):
        monkeypatch.setattr(f"store.tables.items.Items.{reader}", lambda *_: pytest.fail("all texts, for their number"))
    code, out, _ = mta("user", "show", "ann")
    assert code == 0 and "3 items, 2 queries" in out


def test_history(mta: Mta, tmp_path: Path) -> None:
    mta("user", "add", "alice")
    with Registry.open(tmp_path / "store") as reg:
        reg.runs.finish_run(
            reg.runs.start_run("adapt", {}, user_id=reg.users.get("alice").id).id,
            {"loss_after": 0.51234, "heldout_after": None},
        )
    (entry,) = answer(mta, "user", "history", "alice")
    assert (entry["kind"], entry["result"]) == ("adapt", {"loss_after": 0.51234, "heldout_after": None})
    code, out, _ = mta("user", "history", "alice")
    assert code == 0
    assert "loss_after 0.5123" in out and "None" not in out


def test_removing_asks_first(mta: Mta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "notes.jsonl", rows(None, 4))
    mta("user", "add", "alice", "--history", "notes.jsonl")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    code, out, err = mta("user", "rm", "alice")
    assert (code, out) == (1, "")
    assert "history items: 4" in err
    assert len(answer(mta, "user", "list")) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert mta("user", "rm", "alice")[0] == 2
    assert answer(mta, "user", "rm", "alice", "--dry-run")["dry_run"] is True
    gone = answer(mta, "user", "rm", "alice", "--yes")
    assert gone == {"user": "alice", "items": 4, "adapters_removed": [], **NOTHING_LEFT}
    assert answer(mta, "user", "list") == []


def test_hostile_text_is_shown_as_plain_text(mta: Mta, tmp_path: Path) -> None:
    hostile = "\x1b[2J\x1b]52;c;x\x07[bold]x[/b] \u202eevil"
    write(tmp_path / "a.jsonl", [{"user": "ann [/b]", "input": hostile, "output": hostile}])
    assert mta("data", "import", "jsonl", "a.jsonl")[0] == 0
    for words in (["user", "list"], ["user", "items", "ann [/b]"], ["user", "show", "ann [/b]", "--json"]):
        code, out, _ = mta(*words)
        assert code == 0
        assert not {"\x1b", "\x07", "\u202e"} & set(out)
        assert "[/b]" in out
    assert answer(mta, "user", "items", "ann [/b]")[0]["input"] == hostile


def test_a_missing_store_says_what_to_do(mta: Mta, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "nowhere"))
    code, _, err = mta("user", "list")
    assert code == 3
    assert "mta init" in err
    assert not (tmp_path / "nowhere").exists()


def test_items_are_removed_by_their_ids(mta: Mta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [one | {"id": f"n{number}"} for number, one in enumerate(rows(None, 4))]
    write(tmp_path / "notes.jsonl", records)
    answer(mta, "user", "add", "alice", "--history", "notes.jsonl")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, out, err = mta("user", "items", "alice", "--rm", "n1")
    assert (code, out) == (2, "") and "add --yes" in err
    assert "item n1, free: note 1 → answer 1" in err and "recipes: 0, stacks: 0, anchor of: no bank" in err
    for typed, kept in (("n\n", 4), ("y\n", 3)):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert mta("user", "items", "alice", "--rm", "n1")[0] == (1 if kept == 4 else 0)
        assert len(answer(mta, "user", "items", "alice")) == kept
    gone = answer(mta, "user", "items", "alice", "--rm", "n0", "--rm", "n3", "--yes")
    assert gone["items"] == ["n0", "n3"] and {name: gone[name] for name in NOTHING_LEFT} == NOTHING_LEFT
    assert [one["id"] for one in answer(mta, "user", "items", "alice")] == ["n2"]


def test_consent_of_all_users(mta: Mta, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows("ann") + rows("bob"))
    write(tmp_path / "users.json", [person("cid")])
    answer(mta, "data", "import", "jsonl", "a.jsonl", "--no-can-anchor")
    answer(mta, "data", "import", "users", "users.json", "--task", "lamp-2", "--no-can-anchor")

    def consenting() -> list[str]:
        return [one["name"] for one in answer(mta, "user", "list") if one["can_anchor"]]

    changed = answer(mta, "user", "consent", "--all", "--can-anchor", "--task", "free")
    assert (changed["users"], changed["can_anchor"], changed["changed"]) == (2, True, ["ann", "bob"])
    assert consenting() == ["ann", "bob"]
    assert answer(mta, "user", "consent", "--all", "--can-anchor")["changed"] == ["cid"]
    code, out, err = mta("user", "consent", "--all", "--no-can-anchor")
    assert code == 0 and "3 users may not be anchors; 3 of them could before" in err and "changed" in out
    assert consenting() == []
