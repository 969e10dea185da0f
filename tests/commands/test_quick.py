"""`mta quick` from the outside: one screen, one document, and questions at a terminal."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from store.registry import Registry
from tests.pseudo_terminal import Terminal
from tests.shell import Ran, mta, mta_ok

BOOKS = Path(__file__).parents[1] / "pipeline" / "quick" / "books.csv"
STEPS = ("no-model", "base", "base+examples", "common", "common+memory", "fused", "adapted", "another's")
MACHINE = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture
def here(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file, without a store."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(BOOKS, tmp_path / "books.csv")
    return store_root


def test_a_file_becomes_a_verdict_and_every_next_step_parses(here: Path) -> None:
    ran = mta_ok("quick", "books.csv", "--minutes", "0.1", "--yes", *MACHINE)
    lines = ran.out.splitlines()
    assert lines[0].startswith("books.csv: 12 users, 144 items, 24 held out; task books (score)")
    assert "Personal models from at most 8 items of each user; with more it can differ." in lines, "of twelve"
    steps = [line.split()[0] for line in lines if line.startswith(STEPS)]
    assert [step for n, step in enumerate(steps) if step not in steps[:n]] == list(STEPS), "from the bottom"
    assert "own answer" in ran.out and "A personal model on top: " in ran.out
    assert "A complete prompt for" in ran.err and "4 of 4" in ran.err
    nexts = [line.strip() for line in lines[lines.index("Next:") + 1 :]]
    assert [step.split()[1] for step in nexts] == ["ask", "chat", "eval", "eval"]
    answer = mta_ok(*shlex.split(nexts[0])[1:], *MACHINE)
    assert answer.out.strip() in ("1", "2", "3", "4", "5")
    shown = mta_ok(*shlex.split(nexts[2])[1:], "--json").json()
    again = mta_ok("quick", "books.csv", "--minutes", "0.1", *MACHINE)
    assert again.out == ran.out and "measured already" in again.err and "A complete prompt" not in again.err
    document = mta_ok("quick", "books.csv", "--minutes", "0.1", *MACHINE, "--json").json()
    assert document["ladder"] == shown["ladder"] and document["evaluation"] == 1
    assert [one["evaluation"] for one in mta_ok("eval", "list", "--json").json()] == [1]


def test_texts_are_shown_whole_and_cannot_forge_a_line() -> None:
    from mta_cli.commands.quick import _wrap_beside_name

    poem = " ".join(f"word{n}" for n in range(30))
    lines = _wrap_beside_name("own answer", f"Verdict\n{poem}")
    assert lines[0] == "own answer      Verdict" and all(line.startswith(" " * 16) for line in lines[1:])
    assert " ".join(line.strip() for line in lines[1:]) == poem and max(map(len, lines)) <= 80
    long = _wrap_beside_name("base", " ".join(["word"] * 200))
    assert len(long) == 6 and long[-1].endswith(" …")
    assert _wrap_beside_name("base", "") == ["base            (nothing)"]


def test_the_document_has_the_plan_the_ladder_and_whole_examples(here: Path) -> None:
    found = mta_ok(
        "--store", here, "quick", "books.csv", "--minutes", "0.1", "--yes", "--task", "shelf", *MACHINE, "--json"
    ).json()
    assert found["task"] == "shelf" and {line["name"] for line in found["plan"]} >= {"rate", "anchors", "time", "power"}
    assert [one["step"] for one in found["ladder"]["steps"]] == list(STEPS)
    for row in found["examples"]:
        assert set(row["answers"]) == set(STEPS) and row["question"].endswith(".") and row["gold"] in "12345"
    assert any(line.startswith("A personal model on top: ") for line in found["verdict"])
    assert not {"common", "better", "gain", "why"} & set(found)


def test_minutes_that_do_not_suffice_are_asked_about_before_a_bank_is_built(here: Path) -> None:
    ran = refused("books.csv", "--minutes", "0.1", *MACHINE)
    assert ran.code == 2 and "the smallest plan takes about 1 min, more than the 0.1 of --minutes" in ran.err
    assert "hint: allow it with --minutes 1, or run it all the same with --yes" in ran.err
    with Registry.open(here) as reg:
        assert reg.banks.all() == [] and reg.runs.of_kind("quick") == []
    with Terminal(["quick", "books.csv", "--minutes", "0.1", "--can-anchor", *MACHINE]) as terminal:
        for _ in range(4):
            terminal.until(": a column" if _ else "user: the column")
            terminal.press("enter")
        terminal.until("Even the smallest plan takes about 1 min. Continue?")
        terminal.type("n\r")
        terminal.until("nothing was trained")
        assert terminal.ended() == 1


def test_a_dry_run_shows_the_plan_and_makes_no_store(here: Path) -> None:
    ran = mta_ok("quick", "books.csv", "--dry-run", *MACHINE)
    assert "plan of quick" in ran.out and "by the data" in ran.out and "My stars from 1 to 5" in ran.err
    assert not (here / "registry.db").exists()


def refused(*words: str) -> Ran:
    ran = mta("quick", *words)
    assert "Traceback" not in ran.err and ran.out == ""
    return ran


def test_wrong_input_is_one_line_and_nothing_is_made(here: Path, tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("film,stars\nA,1\nB,2\n")
    (tmp_path / "empty.csv").write_text("")
    for words, code, what in (
        (("none.csv",), 3, "There is no file"),
        (("empty.csv",), 4, "is empty"),
        (("two.csv",), 4, "has no column user"),
        (("books.csv", "--output", "grade"), 4, "has no column 'grade'"),
        (("-",), 2, "cannot read standard input or a pipe"),
        (("/dev/null",), 2, "cannot read standard input or a pipe"),
        (("books.csv", "--minutes", "0"), 2, "0.1"),
        (("two.csv", "--me", "ann"), 4, "has more than 3 items"),
        (("books.csv", "--task", "My Task"), 4, "name is 'My Task'"),
    ):
        ran = refused(*words)
        assert ran.code == code and what in ran.err, (words, ran.err)
        if words[1:] not in (("--me", "ann"), ("--task", "My Task")):  # whose files are read in full first
            assert not (here / "registry.db").exists(), words
    if (here / "registry.db").exists():
        with Registry.open(here) as reg:
            assert reg.users.names() == [] and reg.tasks.all() == {}


def test_a_terminal_asks_for_columns_and_consent(here: Path) -> None:
    with Terminal(["quick", "books.csv", "--minutes", "3", *MACHINE]) as terminal:
        for part in ("user", "input", "output", "time"):
            terminal.until(f"{part}: a column" if part != "user" else "user: the column")
            terminal.press("enter")
        terminal.until("May the 12 new users be anchors")
        terminal.type("n\r")
        terminal.until("has consented to be an anchor")
        assert terminal.ended() == 4
