"""`mta quick` from the outside: one screen, one document, and questions at a terminal."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from store.registry import Registry
from tests.shell import Ran, mta, mta_ok
from tests.terminal import Terminal

BOOKS = Path(__file__).parents[1] / "pipeline" / "quick" / "books.csv"
MACHINE = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture
def here(store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file, without a store."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(BOOKS, tmp_path / "books.csv")
    return store_root


def test_a_file_becomes_a_verdict_on_one_screen_and_every_next_step_parses(here: Path) -> None:
    ran = mta_ok("quick", "books.csv", "--minutes", "0.1", *MACHINE)
    lines = ran.out.splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80
    assert lines[0].startswith("books.csv: 12 users, 144 items, 24 held out; task books (score)")
    assert any(line.startswith("Verdict: ") for line in lines)
    assert "A finished prompt of" in ran.err and "4 of 4" in ran.err
    steps = [line.strip() for line in lines[lines.index("Next:") + 1 :]]
    assert [step.split()[1] for step in steps] == ["ask", "chat", "eval", "eval"]
    import shlex

    answer = mta_ok(*shlex.split(steps[0])[1:], *MACHINE)
    assert answer.out.strip() in ("1", "2", "3", "4", "5")
    mta_ok(*shlex.split(steps[2])[1:])
    assert mta_ok("bank", "list", "--json").json()[0]["bank"] == "books"


def test_the_document_has_the_plan_and_the_examples(here: Path) -> None:
    found = mta_ok(
        "--store", here, "quick", "books.csv", "--minutes", "0.1", "--task", "shelf", *MACHINE, "--json"
    ).json()
    assert found["task"] == "shelf" and {line["name"] for line in found["plan"]} >= {"rate", "anchors", "time"}
    assert all(set(row) == {"user", "question", "answered", "common", "personal"} for row in found["examples"])
    assert found["verdict"] in ("worth it", "not told apart", "not worth it")


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
        (("two.csv", "--me", "ann"), 4, "has more than 3 items"),
        (("books.csv", "--output", "grade"), 4, "has no column 'grade'"),
        (("books.csv", "--task", "My Task"), 4, "name is 'My Task'"),
        (("-",), 2, "reads the file more than once"),
        (("/dev/null",), 2, "reads the file more than once"),
        (("books.csv", "--minutes", "0"), 2, "0.1"),
    ):
        ran = refused(*words)
        assert ran.code == code and what in ran.err, (words, ran.err)
    if (here / "registry.db").exists():
        with Registry.open(here) as reg:
            assert reg.users.names() == [] and reg.tasks.all() == {}


def test_a_terminal_asks_for_columns_and_consent(here: Path) -> None:
    with Terminal(["quick", "books.csv", "--minutes", "0.1", *MACHINE]) as terminal:
        for part in ("user", "input", "output", "time"):
            terminal.until(f"{part}: a column" if part != "user" else "user: the column")
            terminal.press("enter")
        terminal.until("May the 12 new users be anchors")
        terminal.type("n\r")
        terminal.until("has consented to be an anchor")
        assert terminal.ended() == 4
