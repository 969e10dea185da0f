"""What commands send to a real terminal from a store where everything is hostile: printable text, and our own styling.

A tab counts as text, for it is white space in code and tables that people write, and can move nothing but itself.

Names, histories, answers, a task, a bank, runs, chats and evaluations of the store hold what terminals obey; so do
names and files on the command line. Every byte that reached the pseudo-terminal is looked at.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mta_cli.text.printable import clean_text
from store.registry import Registry
from tests.pipeline.documents import hostile
from tests.pipeline.world import make_world
from tests.pseudo_terminal import Terminal
from tests.shell import mta_ok
from tests.trust.tally import tally

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX terminal")

ATTACKS = (
    "\x1b[2J\x1b[31m",
    "\x1b]8;;http://evil\x07link\x1b]8;;\x07",
    "\x1b]52;c;eA==\x1b\\",
    "\x9b2J",
    "\x9d0;title\x9c",
    "\x07",
    "\rgone",
    "\x08\x08",
    "\u202egnp.exe",
    "\u2066x\u2069",
    "z\u200bw",
    "\ufeff",
    "\x1bP1$r\x1b\\",
    "\x1b[6n",
    "\x90q\x9c",
    "\x0c\x0b",
    "\u2028",
    "\x7f",
    "[bold red]x[/nothing]",
    "\x1bc",
)
EVIL = "EVIL" + "·".join(ATTACKS) + "END"
WRONG = EVIL + "?"
# Sequences that may occur between printable text: colours (SGR); from Rich's bars, the cursor hidden and shown, a line
# up, a line cleared; of readline, its paste mode and its own editing of the line that is typed. And the ends of lines.
STYLING = re.compile(
    r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[1A|\x1b\[2K|\r(?=\x1b\[2K)|\x1b\[\?2004[lh]|\r*\n|\r(?=\x1b\[\?2004|$)"
)


def leaks(said: bytes) -> list[str]:
    """Whatever is in `said` besides printable text and `STYLING`."""
    text = said.decode()  # invalid UTF-8 would be a leak too
    rest = STYLING.sub("", text)
    return sorted({ascii(char) for char in rest if clean_text(char) != char})


def require_plain(said: bytes, what: object) -> None:
    """Nothing in `said` steers a terminal."""
    found = leaks(said)
    assert found == [], (what, found)
    tally("bytes at pseudo-terminals of commands", "text or our own styling", len(said))
    tally("commands on a hostile store", "no other byte")


def spoil(root: Path, table: str, column: str, condition: str) -> None:
    """Put a hostile text where no command would let it in."""
    with closing(sqlite3.connect(root / "registry.db")) as db, db:
        assert db.execute(f"UPDATE {table} SET {column} = ? WHERE {condition}", (EVIL,)).rowcount > 0, (table, column)
        if table == "items":
            db.execute("INSERT INTO items_fts (items_fts) VALUES ('rebuild')")


@pytest.fixture
def evil_store(store_root: Path) -> Path:
    """The world of `alice`, adapted, whose company, words and records attack terminals."""
    world = make_world(store_root)
    reg = world.reg
    reg.evaluations.add_evaluation("free", None, {"shots": 5}, hostile())
    run = reg.runs.start_run("user adapt", {"why": EVIL}, user_id=reg.users.get("alice").id)
    reg.runs.fail_run(run.id, EVIL)
    labels = json.dumps([f"yes{EVIL}"[:500], "no"])
    toml = f'name = "evil"\nprompt = {json.dumps(EVIL + "{input}")}\nlabels = {labels}\n'
    reg.tasks.save_task("evil", toml)
    reg.close()
    for table, column, condition in (
        ("users", "name", "name = 'erin'"),
        ("items", "input", "input LIKE '%alice%'"),
        ("items", "output", "output LIKE '%dave%'"),
        ("items", "key", "key = 'alice1'"),
        ("banks", "name", "1"),
        ("bases", "name", "1"),
        ("runs", "kind", "user_id IS NOT NULL"),
        ("adapters", "targets", "1"),
    ):
        spoil(store_root, table, column, condition)
    return store_root


def said_by(*arguments: str, typed: tuple[str, ...] = ()) -> tuple[int, bytes]:
    """Exit code and every byte of `mta ARGUMENTS` in a terminal, in which lines are typed at its prompts."""
    with Terminal(arguments, 100, 40, {"OMP_NUM_THREADS": "1", "MTA_MACHINE_DTYPE": "float32"}) as terminal:
        for line in typed:
            terminal.until(lambda screen: screen.rstrip().endswith("(adapted)>"))
            terminal.type(line + "\r")
            terminal.look(0.5)
        return terminal.ended(), terminal.bytes


READING = (
    ("user", "list"),
    ("user", "show", "alice"),
    ("user", "items", "alice"),
    ("user", "history", "alice"),
    ("user", "items", "dave"),
    ("bank", "list"),
    ("eval", "list"),
    ("eval", "show", "1"),
    ("task", "list"),
    ("task", "show", "evil"),
    ("model", "list"),
    ("doctor",),
    ("user", "list", "--json"),
    ("eval", "show", "1", "--json"),
)


def test_commands_that_read_send_only_text_and_styling(evil_store: Path) -> None:
    seen = b""
    for arguments in READING:
        code, said = said_by(*arguments)
        require_plain(said, arguments)
        assert code in (0, 5), (arguments, said[-500:])  # doctor and shows may find fault with such a store
        seen += said
    assert seen.count(b"EVIL") > 8 and b"owned" in seen  # what was put in did come out


def test_errors_that_quote_what_was_typed_send_only_text(evil_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / EVIL.replace("/", "_")[:60]
    folder.mkdir()
    (folder / f"a{ATTACKS[0]}.jsonl").write_text('{"user": "x", "input": ' + json.dumps(WRONG))
    (folder / f"b{ATTACKS[3]}.jsonl").write_text(json.dumps({"user": EVIL, "input": EVIL, "output": {}, EVIL: 1}))
    (folder / f"c{ATTACKS[8]}.toml").write_text(f"name = {json.dumps(WRONG)}\n{json.dumps(WRONG)} = 1\n")
    (folder / "config.json").write_text(json.dumps({"model_type": EVIL, "auto_map": EVIL}))
    (folder / f"d{ATTACKS[0]}.bin").write_bytes(b"\x80\x04.")
    lines = [
        ("user", "show", WRONG),
        ("user", "add", WRONG),
        ("user", "rm", WRONG, "--yes"),
        ("ask", "--user", WRONG, "hello"),
        ("eval", "show", WRONG),
        ("bank", "show", WRONG),
        ("task", "show", WRONG),
        ("model", "pull", WRONG),
        (WRONG,),
        ("model", "pull", str(folder)),
        ("user", f"--{EVIL}"),
        ("--store", str(folder / "none"), "user", "list"),
        *(("data", "import", "jsonl", str(folder / f"{n}{ATTACKS[m]}.jsonl")) for n, m in (("a", 0), ("b", 3))),
        ("data", "import", EVIL, "x"),
        ("task", "add", str(folder / f"c{ATTACKS[8]}.toml")),
        ("-vv", "user", "show", WRONG),
    ]
    for arguments in lines:
        code, said = said_by(*arguments)
        require_plain(said, arguments[:2])
        assert code in (2, 3, 4, 5), (arguments[:2], code, said[-300:])


def test_answers_full_of_control_characters_are_shown_as_text(evil_store: Path) -> None:
    """The tiny base drawn hot says every byte there is; the same draw as JSON shows that it did."""
    drawn = ("--user", "alice", "--temperature", "5", "--max-tokens", "900", "--device", "cpu")
    raw = mta_ok("ask", *drawn, "--json", "hello").json()["text"]
    assert len(set(raw) & set(map(chr, range(32)))) > 10
    for arguments in (("ask", *drawn, EVIL.replace("\x7f", "")), ("compare", *drawn, "hello")):
        code, said = said_by(*arguments)
        assert code == 0, said[-500:]
        assert len(said) > 500
        require_plain(said, arguments)


def test_a_chat_full_of_control_characters_is_shown_as_text(evil_store: Path) -> None:
    code, said = said_by(
        "chat",
        "--user",
        "alice",
        "--temperature",
        "5",
        "--max-tokens",
        "300",
        "--device",
        "cpu",
        typed=("hello", "/history", "/stats", "/quit"),
    )
    assert code == 0, said[-500:]
    require_plain(said, "chat")
    with Registry.open(evil_store) as reg:
        stored = [
            message.content
            for chat in reg.chats.of_user(reg.users.get("alice").id)
            for message in reg.chats.messages(chat.id)
        ]
    assert any(ord(char) < 32 and char not in "\n\t" for text in stored for char in text)


def test_the_checker_sees_every_attack() -> None:
    for attack in ATTACKS:
        if attack != ATTACKS[-2]:  # markup is text
            assert leaks(f"a{attack}b".encode()) != [], ascii(attack)
    assert leaks(b"\x1b[1;31mred\x1b[0m \xe2\x80\x93 \r\nnext\n") == []
