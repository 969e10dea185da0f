"""Commands are built when they are asked for, and values are converted where they must be, and only there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from mta_cli.app import COMMAND_TARGETS, app
from mta_cli.commands import user
from mta_cli.commands.shared.lazy_typer import LazyGroup, import_command
from tests.shell import mta, mta_ok


@pytest.fixture
def root() -> Any:
    """The command `mta`, of which nothing is built yet."""
    return get_command(app)


def test_a_command_is_built_once_and_only_when_it_is_asked_for() -> None:
    built: list[str] = []

    def maker() -> Any:
        built.append("one")
        return get_command(app)

    group = LazyGroup(builders={"one": maker})
    assert group.list_commands(None) == ["one"] and group.get_command(None, "two") is None
    assert built == []
    assert group.get_command(None, "one") is group.get_command(None, "one") is not None
    assert built == ["one"]


@pytest.mark.parametrize("name", COMMAND_TARGETS)
def test_each_place_holds_a_command_of_that_name(root: Any, name: str) -> None:
    command = root.get_command(None, name)
    assert command.name == name
    assert isinstance(command, LazyGroup) == COMMAND_TARGETS[name].endswith(":app")
    for inner in getattr(command, "builders", ()):
        assert command.get_command(None, inner).name == inner


def test_a_place_that_is_empty_is_a_fault_of_the_program() -> None:
    with pytest.raises(AttributeError):
        import_command("init", "init:nothing")
    with pytest.raises(ModuleNotFoundError):
        import_command("init", "nowhere:init")


def test_a_group_keeps_its_help_and_its_commands_the_order_in_which_they_were_made(root: Any) -> None:
    made = root.get_command(None, "user")
    assert made.help == user.app.help_text
    verbs = ["list", "show", "add", "consent", "rm", "history", "items", "fuse", "adapt", "export"]
    assert made.list_commands(None) == verbs


def test_the_path_of_a_store_is_taken_as_it_is_typed(tmp_path: Path) -> None:
    mta_ok("--store", tmp_path / "a store", "init")
    assert (tmp_path / "a store" / "registry.db").is_file()
    assert mta_ok("--store", f"{tmp_path}/a store/../a store", "user", "list", "--json").json() == []


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["data", "import", "jsonl", ""], "PATH"),
        (["data", "import", "questions.json", "--outputs", ""], "--outputs"),
        (["quick", ""], "FILE"),
        (["snapshot", ""], "TO"),
        (["pull", ""], "FROM"),
        (["backup", ""], "FILE"),
        (["restore", ""], "FILE"),
        (["user", "export", "alice", "--to", ""], "--to"),
        (["eval", "report", "1", "--to", ""], "--to"),
        (["--store", "", "user", "list"], "--store"),
        (["user", "list", "--store", ""], "--store"),
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_working_directory(words: list[str], name: str) -> None:
    ran = mta(*words)
    assert (ran.code, ran.out, ran.err.splitlines()[0]) == (2, "", f"error: {name} is empty.")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["user", "items", "alice", "--limit", "0"], "--limit"),
        (["user", "items", "alice", "--limit", "many"], "--limit"),
        (["user", "show"], "Missing argument 'USER'"),
        (["user", "show", "alice", "bob"], "bob"),
        (["user", "lst"], "did you mean mta user list?"),
        (["usr", "list"], "did you mean mta user?"),
        (["export", "ann"], "did you mean mta user export or mta eval export?"),
        (["adapt"], "did you mean mta user adapt?"),
        (["ask", "hello", "--temperature", "warm"], "--temperature"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_refused_before_anything_is_opened(words: list[str], complaint: str) -> None:
    ran = mta(*words)
    assert ran.code == 2
    assert complaint in ran.err
