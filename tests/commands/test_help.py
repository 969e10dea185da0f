"""Help pages: short enough for a narrow terminal, in plain words, with examples that can be run."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from mta_cli import __version__
from mta_cli.app import app
from mta_cli.commands.shared.context import GlobalFlags
from mta_cli.commands.shared.examples import EXAMPLES
from tests.shell import mta, mta_ok

MAX_ONE_LINE_HELP = 45


def walk(path: tuple[str, ...], command: Any) -> list[tuple[tuple[str, ...], Any]]:
    inner = command.list_commands(None) if hasattr(command, "list_commands") else []
    return [(path, command), *(each for name in inner for each in walk((*path, name), command.get_command(None, name)))]


ROOT = get_command(app)
COMMANDS = {" ".join(path): command for path, command in walk((), ROOT)}
LEAVES = [path for path, command in COMMANDS.items() if not hasattr(command, "list_commands")]


@pytest.mark.parametrize("path", [path for path in COMMANDS if path])
def test_the_first_sentence_is_a_whole_line(path: str) -> None:
    short = COMMANDS[path].get_short_help_str(MAX_ONE_LINE_HELP)
    assert short and not short.endswith("...") and len(short) <= MAX_ONE_LINE_HELP


@pytest.mark.parametrize("path", COMMANDS)
def test_no_page_speaks_of_types(path: str) -> None:
    page = mta_ok(*path.split(), "--help").out
    assert not re.search(r"list\[|\[\[|<\w+( range)?>|\{[A-Z]\w*\}|\[default: \(", page), page


@pytest.mark.parametrize("path", [*LEAVES, "serve"])
def test_every_example_is_a_line_that_the_program_takes(path: str) -> None:
    assert EXAMPLES[path]
    for line in EXAMPLES[path]:
        assert f"  {line}\n" in mta_ok(*path.split(), "--help").out and len(line) <= 78
        program, *words = shlex.split(re.sub(" [<>] ", " # ", line), comments=True)
        assert program == "mta"
        context: Any = ROOT.make_context("mta", words, obj=GlobalFlags())
        while context._protected_args:
            rest = [*context._protected_args, *context.args]
            name, command, rest = context.command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)
        assert context.command_path == f"mta {path}"


def test_every_example_is_of_a_command() -> None:
    assert set(EXAMPLES) == {*LEAVES, "serve"}


def test_flags_of_large_commands_are_in_panels() -> None:
    page = mta_ok("bank", "build", "--help").out
    places = [page.index(f"\n{title}:\n") for title in ("Options", "Anchors", "Task adapter", "Machine", "Examples")]
    assert places == sorted(places)
    assert places[2] < page.index("--task-rank N") < places[3]
    assert "--[no-]task-adapter" in page and "[default: 8]" in page


def test_a_usage_line_is_readable() -> None:
    for path, usage in {
        "user show": "[OPTIONS] USER",
        "user adapt": "[OPTIONS] [USER...]",
        "ask": "[OPTIONS] [USER] [TEXT]",
        "eval show": "[OPTIONS] NUMBER|FILE...",
    }.items():
        assert mta_ok(*path.split(), "-h").out.startswith(f"Usage: mta {path} {usage}\n")


def test_help_is_a_command_too() -> None:
    assert mta_ok("help").out == mta_ok("--help").out
    assert mta_ok("help", "user").out == mta_ok("user", "--help").out
    assert mta_ok("help", "serve", "key", "add").out == mta_ok("serve", "key", "add", "--help").out
    ran = mta("help", "user", "delete")
    assert (ran.code, ran.out) == (2, "") and "did you mean mta user rm?" in ran.err
    ran = mta("help", "init", "more")
    assert (ran.code, ran.out) == (2, "") and "hint: mta help init" in ran.err


@pytest.mark.parametrize("word", ["version", "-V", "--version"])
def test_the_version_by_any_name(word: str) -> None:
    assert mta_ok(word).out == f"mta {__version__}\n"


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["user", "delete"], "mta user rm"),
        (["bank", "remove"], "mta bank rm"),
        (["user", "ls"], "mta user list"),
        (["user", "shwo"], "mta user show"),
        (["bank", "bild"], "mta bank build"),
        (["users"], "mta user"),
    ],
)
def test_what_other_programs_call_it_is_understood(words: list[str], meant: str) -> None:
    ran = mta(*words)
    assert (ran.code, ran.out) == (2, "") and f"hint: did you mean {meant}?\n" in ran.err
