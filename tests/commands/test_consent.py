"""Consent and one's own data from the outside: the question at a terminal, flags, what is shown, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mta_cli.terminal.output import Output
from store.registry import Registry
from tests.pipeline.histories import rows, write
from tests.pseudo_terminal import Terminal
from tests.shell import mta, mta_ok

QUESTION = "serve others? [Y/n]"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with ann in it, and files of histories beside it, in the folder that commands run in."""
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    with Registry.open(tmp_path / "store", create=True) as reg:
        reg.users.add("ann")
    write(tmp_path / "two.jsonl", rows("ann") + rows("bob") + rows("cy"))
    write(tmp_path / "own.jsonl", rows(None))
    return tmp_path / "store"


def may(store: Path) -> dict[str, bool]:
    with Registry.open(store) as reg:
        return {each.name: each.can_anchor for each in reg.user_table.summaries()}


@pytest.mark.parametrize(("typed", "agreed"), [("\r", True), ("y\r", True), ("n\r", False), ("NO\r", False)])
def test_an_import_in_a_terminal_asks_once_about_new_people(store: Path, typed: str, agreed: bool) -> None:
    with Terminal(["data", "import", "jsonl", "two.jsonl"], columns=120) as terminal:
        terminal.until("May the 2 new users be anchors, who help to " + QUESTION)
        terminal.type(typed)
        assert terminal.ended() == 0
        assert terminal.bytes.count(QUESTION.encode()) == 1
    assert may(store) == {"ann": True, "bob": agreed, "cy": agreed}


def test_adding_somebody_in_a_terminal_asks(store: Path) -> None:
    with Terminal(["user", "add", "bob", "--history", "own.jsonl"], columns=120) as terminal:
        terminal.until("May the new user be an anchor, who helps to " + QUESTION)
        terminal.type("n\r")
        assert terminal.ended() == 0
    assert may(store) == {"ann": True, "bob": False}


@pytest.mark.parametrize("typed", ["perhaps\r", "\x04", "\x03"], ids=["another word", "ctrl-d", "ctrl-c"])
def test_without_an_answer_nothing_is_written(store: Path, typed: str) -> None:
    with Terminal(["data", "import", "jsonl", "two.jsonl"], columns=120) as terminal:
        terminal.until(QUESTION)
        terminal.type(typed)
        assert terminal.ended() in (1, 130)
    assert may(store) == {"ann": True}


@pytest.mark.parametrize(
    "words",
    [
        ["data", "import", "jsonl", "two.jsonl", "--yes"],
        ["data", "import", "jsonl", "two.jsonl", "--no-can-anchor"],
        ["data", "import", "jsonl", "two.jsonl", "--dry-run"],
        ["user", "add", "ann", "--history", "own.jsonl"],
        ["user", "add", "dee", "-y"],
    ],
    ids=" ".join,
)
def test_nobody_is_asked_where_it_is_said_or_nobody_is_new(store: Path, words: list[str]) -> None:
    with Terminal(words, columns=120) as terminal:
        assert terminal.ended() == 0
        assert QUESTION.encode() not in terminal.bytes


def test_in_a_pipe_nobody_is_asked_and_new_people_may(store: Path) -> None:
    assert QUESTION not in mta_ok("data", "import", "jsonl", "two.jsonl").err
    assert may(store) == {"ann": True, "bob": True, "cy": True}


def test_a_question_takes_the_bar_off_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that went on would be drawn over what is typed."""
    import io

    from mta_cli.events import JobResult, JobStarted

    stopped: list[bool] = []
    monkeypatch.setattr("mta_cli.terminal.progress.ProgressView.stop", lambda view: stopped.append(True))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    output = Output()

    def job():  # type: ignore[no-untyped-def]
        yield JobStarted("reading")
        before = len(stopped)
        output.read_answer("May they?")
        assert len(stopped) == before + 1
        yield JobResult({})

    output.run_job(job())


def test_it_is_changed_and_shown(store: Path) -> None:
    assert mta_ok("user", "list", "--json").json()[0]["can_anchor"] is True
    result = mta_ok("user", "consent", "ann", "--no-can-anchor", "--json").json()
    assert result == {
        "user": "ann",
        "can_anchor": False,
        "changed": True,
        "stale_anchors": [],
        "resting": [],
        "task_adapters": [],
    }
    assert mta_ok("user", "list", "--json").json()[0]["can_anchor"] is False
    table = mta_ok("user", "list").out
    assert "anchor?" in table and table.splitlines()[-1].split()[-1] == "no"
    assert mta_ok("user", "show", "ann", "--json").json()["can_anchor"] is False
    assert "yes" in mta_ok("user", "consent", "ann", "--can-anchor").out and may(store) == {"ann": True}


def test_what_is_not_said_or_not_there_is_refused(store: Path) -> None:
    ran = mta("user", "consent", "ann")
    assert (ran.code, ran.out) == (2, "") and "--no-can-anchor" in ran.err
    ran = mta("user", "consent", "anm", "--can-anchor")
    assert (ran.code, ran.out) == (3, "") and "'ann'" in ran.err


def test_all_that_is_held_is_exported(store: Path, tmp_path: Path) -> None:
    mta_ok("user", "add", "ann", "--history", "own.jsonl")
    result = mta_ok("user", "export", "ann", "--all-data", "--to", "mine", "--json").json()
    assert result["user"] == "ann" and "items.json" in result["files"]
    assert len(json.loads((tmp_path / "mine" / "items.json").read_text())) == 3
    ran = mta("user", "export", "ann", "--all-data", "--to", "mine")
    assert (ran.code, ran.out) == (4, "") and "not empty" in ran.err
    ran = mta("user", "export", "ann", "--all-data", "--to", "other", "--rank", 3, "--task", "free", "--yes")
    assert ran.code == 2 and "--task, --rank, --yes cannot be given" in ran.err and not (tmp_path / "other").exists()
    gone = mta_ok("user", "rm", "ann", "--yes", "--json")
    assert gone.json()["exports"] == [str(tmp_path / "mine")] and str(tmp_path / "mine") in gone.err
    assert (tmp_path / "mine" / "items.json").is_file()
