"""The command reference says what the program does, and misses nothing."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from mta_cli.configuration.settings import all_settings

DOCS = Path(__file__).parent.parent / "docs"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generator()
COMMANDS = dict(GENERATE.COMMANDS["commands"]())
PAGE: str = GENERATE.COMMANDS["page"]()
MANUAL: str = GENERATE.COMMANDS["manual"]()
PAGES: dict[str, str] = GENERATE.pages()
GROUP = re.compile(r"\[([^\]]+)\]\(#[\w-]+\)(?: \(([^)]*)\))?")
OPTION_LINE = re.compile(r"^- `--.*", re.M)


@pytest.mark.parametrize("name", PAGES)
def test_the_checked_in_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], "run `make docs`"


def _options(path: str) -> Iterator[Any]:
    """A command's options that its help lists, without --help."""
    for parameter in COMMANDS[path].params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts and not parameter.hidden:
            yield parameter


def _section(heading: str) -> str:
    return PAGE.split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]


def _documented(path: str) -> list[str]:
    """The lines of commands.md for a command's options: from its own section, and from the groups that it names."""
    own, _, shared = _section(f"`{path}`").partition("\nShared: ")
    lines = OPTION_LINE.findall(own)
    for title, names in GROUP.findall(shared):
        members = OPTION_LINE.findall(_section(title))
        lines += [line for line in members if not names or line[3:].split("`")[0].split(" ")[0].rstrip(",") in names]
    return lines


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_of_a_command_is_documented_once_in_its_section_or_its_groups(path: str) -> None:
    lines, options = _documented(path), list(_options(path))
    for option in options:
        (line,) = (line for line in lines if re.match(rf"- `{', '.join(option.opts)}[ ,`]", line))
        assert " ".join(option.help.split()) in line
    assert len(lines) == len(options)


@pytest.mark.parametrize("path", COMMANDS)
def test_the_man_page_has_every_command_and_option(path: str) -> None:
    text = MANUAL.replace(r"\-", "-")
    assert path == "mta" or f'.SS "{path}"' in text
    for option in (name for each in _options(path) for name in each.opts):
        assert re.search(rf"^\\fB.*{option}\b", text, re.M), option


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_sound_roff() -> None:
    line = ["groff", "-man", "-Tutf8", "-ww", "-Wbreak"]
    ran = subprocess.run(line, input=MANUAL, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    shown = re.sub(r"\x1b\[[\d;]*m|.\x08", "", ran.stdout)
    assert "mta user adapt bryn fleur -t stars" in shown and "EXIT STATUS" in shown


@pytest.mark.parametrize("name", ["compose.yaml", "rayjob.yaml"])
def test_the_cluster_files_call_commands_that_there_are(name: str) -> None:
    text = (DOCS / "cluster" / name).read_text(encoding="utf-8")
    assert yaml.safe_load(text)
    called = re.findall(r"\bmta ((?:--store \S+ )?[a-z].*?)(?: &&|$)", text, re.MULTILINE)
    assert called
    for line in called:
        words = line.removeprefix("--store /store ").split()
        path = max((" ".join(["mta", *words[:n]]) for n in (1, 2)), key=lambda path: (path in COMMANDS, len(path)))
        known = {option for parameter in COMMANDS[path].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_argument_and_option_has_help(path: str) -> None:
    command = COMMANDS[path]
    assert command.help, path
    for parameter in command.params:
        assert parameter.help, f"{path}: {parameter.name}"


@pytest.mark.parametrize("key", all_settings())
def test_every_setting_is_documented(key: str) -> None:
    setting = all_settings()[key]
    assert f"| `{key}` | `{setting.env_variable}` |" in PAGES["settings.md"]
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
