"""The command reference says what the program does, and misses nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mta_cli.settings import all_settings

DOCS = Path(__file__).parent.parent / "docs"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()
COMMANDS = dict(GENERATE.commands())


@pytest.mark.parametrize(
    "name", ["commands.md", "settings.md", "bases.md", "serve-parameters.md", "../store/schema.sql"]
)
def test_the_checked_in_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == GENERATE.pages()[name], "run `make docs`"


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_is_documented(path: str) -> None:
    page = GENERATE.pages()["commands.md"]
    assert f"`{path}`" in page
    section = page.split(f"# `{path}`\n", 1)[1].split("\n#", 1)[0]
    for parameter in COMMANDS[path].params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts and not parameter.hidden:
            assert all(option in section for option in parameter.opts), parameter.opts


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_argument_and_option_has_help(path: str) -> None:
    command = COMMANDS[path]
    assert command.help, path
    for parameter in command.params:
        assert parameter.help, f"{path}: {parameter.name}"


@pytest.mark.parametrize("key", all_settings())
def test_every_setting_is_documented(key: str) -> None:
    setting = all_settings()[key]
    page = GENERATE.pages()["settings.md"]
    assert f"| `{key}` | `{setting.env_variable}` |" in page
    assert setting.help


def test_every_verb_of_the_design_is_there() -> None:
    wanted = {
        "init": (),
        "model": ("pull", "list", "show", "rm", "path"),
        "task": ("list", "show", "add"),
        "data": ("import",),
        "user": ("list", "show", "add", "consent", "rm", "history", "items", "fuse", "adapt", "export"),
        "bank": ("build", "list", "show", "verify", "rm"),
        "chat": (),
        "ask": (),
        "compare": (),
        "demo": (),
        "doctor": (),
        "backup": (),
        "restore": (),
        "snapshot": (),
        "pull": (),
    }
    missing = [f"mta {noun}" for noun in wanted if f"mta {noun}" not in COMMANDS]
    missing += [
        f"mta {noun} {verb}" for noun in wanted for verb in wanted[noun] if f"mta {noun} {verb}" not in COMMANDS
    ]
    assert not missing


@pytest.mark.parametrize("path", [path for path in COMMANDS if path.split()[-1] in ("list", "show")])
def test_every_list_and_show_speaks_json(path: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[path].params)
