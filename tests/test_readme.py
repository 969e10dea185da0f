"""The commands in README.md work: each command parses, each make target exists, and (slow) each one runs.

In a fenced ```console block, lines that begin with `$ ` are commands and others are output. `\\` at the end goes on.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from mta_cli.app import app
from mta_cli.commands.shared.context import GlobalFlags

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(console|sh|bash)\n(.*?)^```", re.S | re.M)
SHELL_WORDS = {
    "git",
    "cd",
    "make",
    "mta",
    "pip",
    "pipx",
    "uv",
    "python",
    "python3",
    "echo",
    "printf",
    "cat",
    "source",
    ".venv/bin/mta",
}


def commands() -> list[str]:
    """Every command line of the README, in order."""
    found = []
    for kind, block in BLOCK.findall(README.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append(" ".join(line[2:].split()))
            elif kind != "console" and line.strip() and not line.startswith("#"):
                found.append(" ".join(line.split()))
    return found


COMMANDS = commands()
OURS = [line for line in COMMANDS if re.search(r"(^|\| ?|/)mta ", line)]


def _words(line: str) -> list[str]:
    """The words after `mta` of the part of a pipeline that is ours."""
    words = shlex.split(line, comments=True)
    start = next(index for index, word in enumerate(words) if word.rpartition("/")[2] == "mta")
    rest = words[start + 1 :]
    ends = [index for index, word in enumerate(rest) if word in ("|", ">", "&&", ";", "<")]
    return rest[: ends[0]] if ends else rest


def test_the_readme_has_commands() -> None:
    assert any(line.startswith("make demo") for line in COMMANDS)
    assert len(OURS) >= 5


@pytest.mark.parametrize("line", COMMANDS)
def test_each_line_begins_with_something_known(line: str) -> None:
    assert shlex.split(line, comments=True)[0] in SHELL_WORDS


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_each_make_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in shlex.split(line, comments=True)[1:]:
        assert "=" in target or re.search(rf"^{re.escape(target)}:", makefile, re.M), target


@pytest.mark.parametrize("line", OURS)
def test_each_command_parses(line: str) -> None:
    command, words, parent = get_command(app), _words(line), None
    if words in (["--version"], ["--help"]):
        return
    while True:
        context = command.make_context("mta", words, parent=parent, obj=GlobalFlags())
        if not hasattr(command, "list_commands"):
            return
        words = [*context._protected_args, *context.args]
        assert words and words[0] in command.list_commands(context), f"no command {words[:1]}"
        command, words, parent = command.get_command(context, words[0]), words[1:], context


@pytest.mark.slow
def test_the_readme_runs_from_top_to_bottom(tmp_path: Path, real_models: Path) -> None:
    """Every `mta` line, in order, in one fresh store, in a folder that looks like a checkout.

    Banks are trained on two items of each person, once, and stacks in four steps: that all lines run is shown, not what
    comes of long training.
    """
    for entry in ROOT.iterdir():
        if not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    bin_folder = tmp_path / ".bin"
    bin_folder.mkdir()
    script = bin_folder / "mta"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mta_cli "$@"\n')
    script.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MTA_STORE": str(tmp_path / ".store"),
        "MTA_MODELS": str(real_models),
        "MTA_BANK_MAX_ITEMS": "2",
        "MTA_BANK_EPOCHS": "1",
        "MTA_BANK_TASK_EPOCHS": "1",
        "MTA_ADAPT_STEPS": "4",
    }
    for line in OURS:
        shown = line.replace(".venv/bin/mta", "mta")
        command = ["bash", "-o", "pipefail", "-c", shown]
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert ran.returncode == 0, f"$ {line}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"
