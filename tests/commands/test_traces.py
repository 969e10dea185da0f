"""Whatever asked, talked and looked leaves words of people in the store alone: not in any folder of the platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.world import make_world
from tests.pseudo_terminal import Terminal
from tests.shell import mta_ok
from tests.trust.tally import tally

TYPED = "the plumfrotz rises at dawn"
CPU = ("--device", "cpu", "--dtype", "float32", "--max-tokens", "4")
FOLDERS = {
    "HOME": "",
    "XDG_DATA_HOME": "data",
    "XDG_CONFIG_HOME": "config",
    "XDG_CACHE_HOME": "cache",
    "XDG_STATE_HOME": "state",
    "XDG_RUNTIME_DIR": "run",
    "TMPDIR": "tmp",
}


@pytest.fixture
def home(tmp_path: Path, store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, with every folder that the platform has for programs in it, and the store where it belongs."""
    root = tmp_path / "home"
    for name, folder in FOLDERS.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(name, str(root / folder))
    for name in ("MTA_STORE", "MTA_CONFIG"):
        monkeypatch.delenv(name)
    make_world(root / "data" / "mta").reg.close()
    return root


def holding(home: Path, *words: str) -> Iterator[Path]:
    """Files that hold any of the words, in their names or contents."""
    wanted = [word.encode(coding) for word in words for coding in ("utf-8", "utf-16-le")]
    for path in sorted(home.rglob("*")):
        content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        if any(word in content for word in wanted):
            yield path


def test_an_exchange_that_was_kept_and_taken_back_is_in_no_file(home: Path) -> None:
    kept = ("chat", "--user", "alice", "--no-save", *CPU)
    said = mta_ok(*kept, stdin=f"{TYPED}\n/good\n")
    assert "history item" in said.err and list(holding(home, TYPED))
    (item,) = (one for one in mta_ok("user", "items", "alice", "--json").json() if one["input"] == TYPED)
    mta_ok("user", "items", "alice", "--rm", item["id"], "--yes")
    assert list(holding(home, TYPED, "plumfrotz")) == []
    mta_ok(*kept, stdin=f"{TYPED}\n/good\n/undo\n")
    assert list(holding(home, TYPED, "plumfrotz")) == []
    tally("files of a home searched for an item that was removed", "without a word", 2)


def test_asking_talking_and_looking_leave_nothing_outside_the_store(home: Path) -> None:
    mta_ok("ask", "--user", "alice", TYPED, *CPU)
    mta_ok("compare", "--user", "alice", TYPED, *CPU)
    with Terminal(["chat", "--user", "alice", *CPU], columns=120) as chat:
        chat.until("alice (adapted)>")
        chat.type(f"{TYPED}\r")
        chat.until(lambda screen: screen.count("alice (adapted)>") > 1)
        chat.type("/quit\r")
        assert chat.ended() == 0
    with Terminal(["tui"], columns=120, rows=40) as window:
        window.until("alice")
        window.press("2")
        window.look(2.0)
        window.type("\x11")  # Ctrl-Q
        assert window.ended() == 0
    kept = list(holding(home, "alice", TYPED))
    assert kept and all(path.is_relative_to(home / "data" / "mta") for path in kept), kept
    tally("files that hold what was asked and said", "in the store", len(kept))
    gone = mta_ok("user", "rm", "alice", "--yes", "--json").json()
    assert gone["user"] == "alice"
    assert list(holding(home, "alice", TYPED, "plumfrotz")) == []
    files = sum(path.is_file() for path in home.rglob("*"))
    tally("files of a home searched for a forgotten person", "without a word", files)
