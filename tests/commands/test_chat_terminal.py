"""`mta chat` in a real terminal: completion by TAB, Ctrl-C during an answer, Ctrl-C at the prompt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mta_cli.terminal.signals import ENDING_SIGNALS, exit_code_of
from tests.pipeline.world import make_world
from tests.pseudo_terminal import Terminal

pexpect = pytest.importorskip("pexpect")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")

LONG = "1500"  # tokens: the tiny base without its end token would talk for seconds


def test_a_typed_chat(store_root: Path) -> None:
    pytest.importorskip("readline")
    make_world(store_root).reg.close()
    arguments = ["-m", "mta_cli", "chat", "--user", "bob", "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "MTA_CONFIG": "", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    drawn = ["--temperature", "1", "--max-tokens", LONG]
    chat = pexpect.spawn(
        sys.executable,
        [*arguments, *drawn],
        cwd=root,
        env=environment,
        encoding="utf-8",
        timeout=60,
        dimensions=(30, 160),
    )
    chat.expect_exact("bob (fused)> ")
    chat.send("/comm\t\r")
    chat.expect_exact("bob (common)> ")
    chat.send("/us\tal\t\r")
    chat.expect_exact("alice (adapted)> ")
    chat.send("tell me everything\r")
    chat.expect_exact("everything\r\n")
    chat.expect("[!-~]")
    chat.sendintr()
    chat.expect(["stopped", "tokens,"])
    chat.expect_exact("alice (adapted)> ")
    chat.send("/history\r")
    chat.expect_exact("first words")
    chat.expect_exact("alice (adapted)> ")
    chat.sendintr()
    chat.expect_exact("Ctrl-C again")
    chat.expect_exact("alice (adapted)> ")
    chat.sendintr()
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 130


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_gives_the_terminal_back(store_root: Path, number: int) -> None:
    make_world(store_root).reg.close()
    with Terminal(["chat", "--user", "bob", "--device", "cpu"], env={"MTA_CONFIG": "", "NO_COLOR": "1"}) as terminal:
        terminal.until("bob (fused)>")
        os.kill(terminal.pid, number)
        assert terminal.ended() == exit_code_of(number) and terminal.echoes
