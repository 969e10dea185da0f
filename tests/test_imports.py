"""Who may know whom, and what a quick command must not load."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "sentence_transformers", "sklearn", "textual"}
QUICK = [
    ["--help"],
    ["--version"],
    ["user", "--help"],
    ["bank", "build", "--help"],
    ["user", "list"],
    ["user", "show", "alice"],
    ["user", "items", "alice"],
    ["user", "history", "alice"],
    ["task", "list"],
    ["task", "show", "lamp-2"],
    ["bank", "list"],
    ["model", "list"],
    ["model", "path"],
]
SOURCES = sorted([*(ROOT / "mta_cli").rglob("*.py"), *(ROOT / "store").rglob("*.py")])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a person with a store that holds one user."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "notes.jsonl").write_text('{"input": "a", "output": "b"}\n')
    env = {
        **os.environ,
        "MTA_STORE": str(folder / "store"),
        "MTA_MODELS": str(folder / "models"),
        "PYTHONPATH": str(ROOT),
    }
    for command in (["init"], ["user", "add", "alice", "--history", str(folder / "notes.jsonl")]):
        subprocess.run([sys.executable, "-m", "mta_cli", *command], env=env, check=True, capture_output=True)
    return env


@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_a_quick_command_loads_nothing_heavy(command: list[str], environment: dict[str, str]) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", "mta_cli", *command]
    ran = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert "mta_cli" in _loaded(ran.stderr)
    assert not _loaded(ran.stderr) & HEAVY


def _loaded(importtime: str) -> set[str]:
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in importtime.splitlines() if "|" in line}


def test_completion_loads_nothing_heavy(environment: dict[str, str]) -> None:
    env = {**environment, "_MTA_COMPLETE": "complete_bash", "COMP_WORDS": "mta user show al", "COMP_CWORD": "3"}
    arguments = [sys.executable, "-X", "importtime", "-m", "mta_cli"]
    ran = subprocess.run(arguments, env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["alice"]
    assert not _loaded(ran.stderr) & HEAVY


def test_the_rooms_keep_to_their_doors() -> None:
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_output_writes(path: Path) -> None:
    if path.name in ("output.py", "progress.py"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"print", "typer.echo", "typer.secho", "typer.confirm", "typer.prompt"}
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"sys.stdout", "sys.stderr"}, f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sql_is_in_the_store_alone(path: Path) -> None:
    if path.is_relative_to(ROOT / "store"):
        return
    statement = re.compile(
        r"^\s*(SELECT\s.+\sFROM|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+TABLE|PRAGMA)\s", re.S
    )
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not statement.match(node.value), f"line {node.lineno}"
