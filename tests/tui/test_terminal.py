"""The window in a real terminal, from an empty store to an adapted person who is compared and talked with."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from mta_cli.terminal.signals import ENDING_SIGNALS, exit_code_of
from store.registry import Registry
from tests.pseudo_terminal import Terminal
from tests.trust.tally import tally

HOSTILE = "mine \x1b]0;PWNED\x07\x1b[2J\u202e1"


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    """Six people who disagree, and mina, who has written what terminals obey."""
    records = [
        {"user": f"person{n}", "input": f"line {k} of {n}", "output": ("yes", "no", "maybe")[n % 3]}
        for n in range(6)
        for k in range(6)
    ]
    records += [{"user": "mina", "input": text, "output": "yes"} for text in ("mine 0", HOSTILE, "mine 2")]
    path = tmp_path / "crowd.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def fill(terminal: Terminal, first: str, *values: tuple[int, str]) -> None:
    """Put values into a form, each so many fields further down; then its plan, then start.

    `first` is the help on the first field, which is shown once that has the focus.
    """
    terminal.until(first)
    for steps, value in values:
        terminal.press(*["tab"] * steps, "ctrl+u")
        terminal.type(value)
        terminal.look(0.2)
    terminal.press("enter")
    terminal.until("Start")
    terminal.until("Back")
    terminal.press("enter")


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (200, 50)])
def test_from_an_empty_store_to_an_adapted_user_by_keys(
    empty_store: Path, histories: Path, columns: int, rows: int
) -> None:
    with Terminal(["tui"], columns, rows) as terminal:
        terminal.until("There are no users yet.")
        terminal.press("i")
        fill(terminal, "The path of the file", (0, str(histories)))
        terminal.until("✓ data import")
        terminal.press("1")
        terminal.until(lambda screen: "person5" in screen and "PWNED" in screen)
        terminal.press("4", "b")
        fill(terminal, "The task.", (2, "2"), (1, "2"), (1, "1"), (1, "4"))
        terminal.until("✓ bank build")
        terminal.press("a")
        fill(terminal, "Users' names, separated", (0, "mina"))
        terminal.until("✓ user adapt")
        terminal.press("1")
        terminal.until("/ to filter")
        terminal.press("/")
        terminal.look(0.5)
        terminal.type("mina")
        terminal.until(lambda screen: "person5" not in screen and "adapted" in screen)
        terminal.press("enter", "enter", "2")
        terminal.until("prompt as typed")
        terminal.press("i")
        terminal.look(0.5)
        terminal.type("is it mine")
        terminal.press("enter")
        terminal.until(lambda screen: len(re.findall(r"tokens? · [\d,.]+/s", screen)) == 4)
        terminal.press("escape", "5")
        terminal.until("Type a message")
        terminal.look(0.5)
        terminal.type("and now")
        terminal.press("enter")
        terminal.until("and now")
        terminal.press("escape", "escape", "escape", "ctrl+q")
        assert terminal.ended() == 0
        said = terminal.bytes
    assert b"PWNED" in said and b"\x1b]0;PWNED" not in said and "\u202e".encode() not in said
    tally("bytes of the window searched for escapes put in", "none of them", len(said))
    with Registry.open(empty_store) as reg:
        mina = reg.users.get("mina")
        assert len(reg.stacks.of_user(mina.id)) == 1
        assert [run.status for run in reg.runs.of_user(reg.users.get("mina").id)] == [
            "done"
        ] and reg.check_integrity() == []


def test_without_a_terminal_it_says_so(empty_store: Path) -> None:
    from tests.shell import mta

    ran = mta("tui")
    assert ran.code == 2 and "needs a terminal" in ran.err and not empty_store.exists()


def test_colours_can_be_turned_off(demo_store: Path) -> None:
    with Terminal(["tui"], 100, 30, {"NO_COLOR": "1"}) as terminal:
        terminal.until("ida")
        terminal.press("q")
        assert terminal.ended() == 0
    assert b"\x1b[38;" not in terminal.bytes or _grey(terminal.bytes)


def _grey(said: bytes) -> bool:
    """Whether every colour that was sent has three equal parts."""
    found = re.findall(rb"[34]8;2;(\d+);(\d+);(\d+)", said)
    return all(red == green == blue for red, green, blue in found)


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_gives_the_terminal_back(empty_store: Path, number: int) -> None:
    with Terminal(["tui"]) as terminal:
        terminal.until("There are no users yet.")
        os.kill(terminal.pid, number)
        assert terminal.ended() == exit_code_of(number) and terminal.echoes
        assert terminal.bytes.rindex(b"\x1b[?1049l") > terminal.bytes.rindex(b"\x1b[?1049h"), "the first screen again"
        assert terminal.bytes.rindex(b"\x1b[?1000l") > terminal.bytes.rindex(b"\x1b[?1000h"), "no reports of the mouse"
