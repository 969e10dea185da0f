"""`mta data import` from the outside: its two words, its flags, and the questions at a terminal."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from store.registry import Registry
from tests.pipeline.histories import rows, write
from tests.pseudo_terminal import Terminal
from tests.shell import mta, mta_ok

EXPORTS = Path(__file__).parent.parent / "pipeline" / "data" / "exports"
FILMS = "person,film,stars\n" + "".join(
    f"{who},A film about {place},{stars}\n"
    for who in ("ann", "bob")
    for stars, place in enumerate(("salt", "ferries", "lanterns", "letters"), 1)
)
OWN = "text;label;day\nsalt;go;2026-01-04\na ferry;skip;2026-01-03\nan orchard;go;2026-01-02\na tide;skip;2026-01-01\n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, and files beside it in the folder that commands run in."""
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    Registry.open(tmp_path / "store", create=True).close()
    write(tmp_path / "notes.jsonl", rows("ann", 6))
    write(tmp_path / "films.csv", FILMS)
    write(tmp_path / "own.csv", OWN)
    return tmp_path / "store"


def stored(store: Path, name: str) -> list[tuple[str, str]]:
    with Registry.open(store) as reg:
        return [(item.input, item.output) for item in reg.items.recent_items(reg.users.get(name).id, "free")]


@pytest.mark.parametrize("words", [["jsonl", "notes.jsonl"], ["notes.jsonl"], ["--hold-out", "2", "notes.jsonl"]])
def test_the_format_may_be_named(store: Path, words: list[str]) -> None:
    result = mta_ok("data", "import", *words, "--json").json()
    assert result["format"] == "jsonl" and result["items_added"] + result["queries_added"] == 6
    assert result["queries_added"] == (2 if "--hold-out" in words else 0)


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["csv"], 2, "csv is a format, and no file was named"),
        ([], 2, "No file was named"),
        ([""], 2, "No file was named"),
        (["csv", ""], 2, "PATH is empty"),
        (["csv", "films.csv", "notes.jsonl"], 2, "unexpected extra argument"),
        (["xml", "films.csv"], 2, "'xml' is not a format"),
        (["csv", "notes.jsonl"], 4, "notes.jsonl looks like jsonl, not csv"),
        (["films.csv"], 4, "films.csv has no column user, input, output; its columns are 'person', 'film', 'stars'"),
        (["films.csv", "--me", "ann", "--user", "person"], 2, "--me and --user contradict each other"),
        (["films.csv", "--input", "{film"], 2, "'{film' is not a template"),
        (["films.csv", "--me", "--x"], 4, "cannot be a user's name"),
        (["films.csv", "--preset", "imdb"], 2, "an export of IMDb does not name its user"),
        ([str(EXPORTS / "mail" / "takeout.mbox")], 2, "which mails in takeout.mbox are yours?"),
        ([str(EXPORTS / "claude" / "conversations.json")], 2, "does not name its user"),
        ([str(EXPORTS / "whatsapp" / "_chat.txt")], 2, "which messages in _chat.txt are yours?"),
        ([str(EXPORTS / "slack"), "--me", "zoe"], 4, "no message in slack is from zoe"),
        (["notes.jsonl", "--task", "lamp-2"], 4, "6 of 6 answers in notes.jsonl are not labels of lamp-2"),
        (["none.zip", "--me", "ann"], 3, "There is no file 'none.zip'"),
        (["notes.jsonl", "--me", "ann", "--me", "bo"], 2, "--me bo is a second name"),
        (["none.csv"], 3, "There is no file 'none.csv'"),
        (["notes.jsonl", "--round", "inf"], 2, "round = inf (flag --round): a finite number is needed"),
        (["notes.jsonl", "--round", "1e300"], 2, "the most is 1000000000"),
    ],
)
def test_wrong_words_are_one_line(store: Path, words: list[str], code: int, what: str) -> None:
    ran = mta("data", "import", *words)
    assert ran.code == code and what in ran.err
    assert len(ran.err.strip().splitlines()) <= 2


def test_flags_map_the_columns(store: Path) -> None:
    mta_ok("data", "import", "films.csv", "--user", "person", "--input", "Film: {film}", "--output", "stars")
    assert stored(store, "bob")[0] == ("Film: A film about salt", "1")


def test_a_file_of_one_user(store: Path) -> None:
    result = mta_ok("data", "import", "own.csv", "--me", "cy", "--input", "text", "--output", "label", "--json").json()
    assert (result["format"], result["users"], result["items_added"]) == ("csv", 1, 4)


def test_mail_takes_a_name_and_several_addresses(store: Path) -> None:
    names = ["--me", "ann", "--me", "ann@example.org", "--me", "ann.reed@work.example"]
    words = ("data", "import", str(EXPORTS / "mail" / "takeout.mbox"), *names, "--yes")
    result = mta_ok(*words, "--json").json()
    assert (result["format"], result["users"], result["items_added"]) == ("mbox", 1, 2)
    assert stored(store, "ann")[1][0] == "Boat house\n\nDo you bring the brushes?\nAnd who drives?"
    with Registry.open(store) as reg:
        assert not reg.users.get("ann").can_anchor
    assert "Next: mta user consent --all --can-anchor -t free" in mta_ok(*words).err


def test_a_terminal_is_asked_for_missing_columns(store: Path) -> None:
    words = ["--store", str(store), "data", "import", "films.csv", "--yes", "--task", "free", "--seed", "7"]
    with Terminal(words, columns=240) as terminal:
        terminal.until("user: the column with the users' names, or else the one user's name [person]:")
        assert "film: A film about salt" in terminal.look()
        terminal.type("flim\r")
        terminal.until("has no column 'flim'")
        terminal.type("\r")
        terminal.until("[film]:")
        terminal.type("About {film}\r")
        terminal.until("[stars]:")
        terminal.type("\r")
        terminal.until(f"mta {shlex.join(words)} --user person --input 'About {{film}}' --output stars")
        assert terminal.ended() == 0
    assert stored(store, "ann")[1] == ("About A film about ferries", "2")


def test_no_column_is_offered_that_a_flag_uses(store: Path) -> None:
    rows = "".join(f"ann,glad,a long note about day {n}\n" for n in range(9))
    write(store.parent / "moods.csv", "person,mood,note\n" + rows)
    with Terminal(["data", "import", "moods.csv", "--yes", "--output", "note"], columns=120) as terminal:
        terminal.until("[person]:")
        terminal.type("\r")
        terminal.until("input: ")
        assert "[note]:" not in terminal.look()
        terminal.type("mood\r")
        terminal.until("--output note --user person --input mood")
        assert terminal.ended() == 0


def test_a_file_of_one_user_is_asked_for_the_name(store: Path) -> None:
    with Terminal(["data", "import", "own.csv", "--yes", "--output", "label"], columns=120) as terminal:
        terminal.until("the one user's name:")
        terminal.type("cy\r")
        terminal.until("[text]:")
        terminal.type("\r")
        terminal.until("time: a column, or - for none [day]:")
        terminal.type("\r")
        terminal.until("mta data import own.csv --yes --output label --input text --time day --me cy")
        assert terminal.ended() == 0
    assert stored(store, "cy")[0] == ("a tide", "skip")


def test_a_guessed_time_that_is_accepted_at_a_terminal_costs_no_row(store: Path) -> None:
    more = "".join(f"a lamp {n};go;2026-02-01\n" for n in range(9))
    write(store.parent / "own.csv", OWN.replace("2026-01-04", "soon") + more)
    for typed, code in (("", 0), ("day", 4)):
        with Terminal(["data", "import", "own.csv", "--yes", "--output", "label"], columns=120) as terminal:
            for question, answer in (("one user's name:", "cy"), ("[text]:", ""), ("for none [day]:", typed)):
                terminal.until(question)
                terminal.type(f"{answer}\r")
            terminal.until("kept without their unreadable time: 1" if code == 0 else "'soon' is not an ISO 8601")
            assert terminal.ended() == code


def test_no_time_can_be_chosen_at_a_terminal(store: Path) -> None:
    with Terminal(["data", "import", "own.csv", "--yes", "--output", "label"], columns=120) as terminal:
        for question, answer in (("one user's name:", "cy"), ("[text]:", ""), ("time: a column, or - for none", "-")):
            terminal.until(question)
            terminal.type(f"{answer}\r")
        terminal.until("mta data import own.csv --yes --output label --input text --time '' --me cy")
        assert terminal.ended() == 0


def test_a_pipe_is_read_once_and_no_columns_are_asked_for(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mta_cli.commands.data.stdin_is_terminal", lambda: True)
    reader, writer = os.pipe()
    os.write(writer, (store.parent / "notes.jsonl").read_bytes())
    os.close(writer)
    try:
        mta_ok("data", "import", f"/dev/fd/{reader}", "--yes")
    finally:
        os.close(reader)
    assert len(stored(store, "ann")) == 6


def test_without_an_answer_nothing_is_imported(store: Path) -> None:
    with Terminal(["data", "import", "films.csv"], columns=120) as terminal:
        terminal.until("[person]:")
        terminal.type("\x04")
        assert terminal.ended() == 1
        assert b"nothing was imported" in terminal.bytes
    with Registry.open(store) as reg:
        assert reg.users.names() == []


def test_faulty_rows_are_left_out_and_numbers_rounded_where_asked_for(store: Path) -> None:
    write(store.parent / "drams.csv", "user,input,output\nann,Salt,68\n-x,Rye,70\nann,Peat,n/a\nann,Oat,83\n")
    refused = mta("data", "import", "drams.csv")
    assert refused.code == 4 and "1 fault" in refused.err and "nothing was imported" in refused.err
    ran = mta_ok("data", "import", "drams.csv", "--skip-faulty", "--round", "10")
    assert "left out, records with a fault: 1" in ran.err and "output is not a number: 1" in ran.err
    assert stored(store, "ann") == [("Salt", "70"), ("Oat", "80")]
    write(store.parent / "bad.csv", "user,input,output\n-x,Salt,68\n")
    told = mta("data", "import", "bad.csv", "--skip-faulty").err
    assert "1 fault" in told and "every record has a fault" in told
