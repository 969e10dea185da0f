"""The layers' allowed imports, and the libraries that a quick command must not load."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from store.registry import Registry
from tests.store.making import bank

ROOT = Path(__file__).parent.parent
MODELS = {"transformers", "peft", "sentence_transformers", "sklearn", "textual"}
HEAVY = {*MODELS, "torch", "matplotlib", "numpy", "pandas", "scipy", "tokenizers", "safetensors", "huggingface_hub"}
OTHERS = {"peft", "sentence_transformers", "textual", "pandas", "datasets"}  # for what asking somebody is not
SLOW = {*HEAVY, "asyncio", "filelock", "pydantic", "sqlite_utils"}  # tens of milliseconds each
QUICK = [
    ["--help"],
    ["--version"],
    ["user", "--help"],
    ["bank", "build", "--help"],
    ["user", "list"],
    ["user", "list", "--json"],
    ["user", "list", "--task", "free"],
    ["user", "show", "alice"],
    ["user", "items", "alice"],
    ["user", "history", "alice"],
    ["task", "list"],
    ["task", "show", "lamp-2"],
    ["bank", "list"],
    ["bank", "show", "old"],
    ["eval", "list"],
    ["eval", "list", "--json"],
    ["eval", "run", "--help"],
    ["model", "list"],
    ["model", "list", "--available"],
    ["model", "path"],
    ["config", "list"],
    ["help", "bank", "build"],
]
MEASURED = {
    "task": "free",
    "metric": "rouge_1",
    "users": 2,
    "queries": 4,
    "shots": 5,
    "seed": 0,
    "folds": 2,
    "reference": "mta",
    "methods": {name: {"rouge_1": {"value": 0.5, "low": 0.4, "high": 0.6}} for name in ("mta", "base")},
    "differences": [{"a": "mta", "b": "base", "metric": "rouge_1", "value": 0.0, "low": -0.1, "high": 0.1, "p": 1.0}],
    "costs": {name: {"bytes": 0, "seconds": 0.1} for name in ("mta", "base")},
    "power": {"metric": "rouge_1", "detectable": 0.1, "basis": "a guess"},
}
# modules, of which the oldest libraries load some more
MOST = {"--version": 200, "--help": 216, "user list --json": 240, "user list": 320, "user show alice": 320}
RUNNER = """
import sys
from mta_cli.app import main
try:
    main()
finally:
    sys.stderr.write("\\nmodules: " + " ".join(sys.modules))
"""
SOURCES = sorted([*(ROOT / "mta_cli").rglob("*.py"), *(ROOT / "store").rglob("*.py")])


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a store that has one user, a bank without anchors and an evaluation."""
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
    with Registry.open(folder / "store") as reg:
        bank(reg, [], name="old")
        number = reg.evaluations.get_or_create_evaluation("k", "free", {"shots": 5}, []).id
        reg.evaluations.finish_evaluation(number, MEASURED)
    return env


def run(command: list[str], env: dict[str, str]) -> tuple[str, set[str]]:
    """Standard output of a command line in a process of its own, and the modules that it left loaded."""
    arguments = [sys.executable, "-c", RUNNER, *command]
    ran = subprocess.run(arguments, env=env, capture_output=True, text=True, check=True)
    modules = set(ran.stderr.rsplit("modules: ", 1)[1].split())
    assert "mta_cli.app" in modules
    return ran.stdout, modules


def packages(modules: set[str]) -> set[str]:
    """The packages that modules belong to."""
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("command", QUICK, ids=" ".join)
def test_a_quick_command_loads_nothing_slow(command: list[str], environment: dict[str, str]) -> None:
    _, modules = run(command, environment)
    assert packages(modules) & SLOW == set()


def test_a_store_that_is_named_on_the_line_is_read_as_quickly(environment: dict[str, str]) -> None:
    env = {**environment, "MTA_STORE": "/nowhere"}
    out, modules = run(["--store", environment["MTA_STORE"], "user", "list"], env)
    assert "alice" in out
    assert packages(modules) & SLOW == set()


@pytest.mark.parametrize("line", MOST)
def test_a_quick_command_stays_within_its_budget_of_modules(line: str, environment: dict[str, str]) -> None:
    _, modules = run(line.split(), environment)
    assert len(modules) <= MOST[line]


def test_only_the_command_that_is_named_is_imported(environment: dict[str, str]) -> None:
    _, modules = run(["user", "list"], environment)
    ours = {module for module in modules if module.startswith("mta_cli.commands.")}
    shared = ("arguments", "context", "help_page", "lazy_typer", "option_flags")
    assert ours == {f"mta_cli.commands.{name}" for name in ("user", "shared", *(f"shared.{each}" for each in shared))}
    assert not any(module.startswith(("mta_cli.engine", "mta_cli.pipeline")) for module in modules)


def test_a_value_that_needs_no_conversion_is_not_converted_by_pydantic(environment: dict[str, str]) -> None:
    for limit, converted in (([], False), (["--limit", "3"], True)):
        _, modules = run(["user", "items", "alice", *limit], environment)
        assert ("pydantic" in modules) is converted


@pytest.mark.parametrize("command", [["eval", "show", "1"], ["eval", "show", "1", "--json"]], ids=" ".join)
def test_a_number_is_read_by_nothing_slow(command: list[str], environment: dict[str, str]) -> None:
    out, modules = run(command, environment)
    assert "mta" in out
    assert packages(modules) & SLOW == set()


def test_doctor_looks_at_torch_and_loads_no_other_model_library(environment: dict[str, str]) -> None:
    _, modules = run(["doctor"], environment)
    assert packages(modules) & MODELS == set()


def test_asking_loads_what_answers_and_no_more(store_root: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run(["init"], env)
    _, modules = run(["ask", "hello", "--max-tokens", "2", "--device", "cpu"], env)
    assert {"torch", "transformers"} <= packages(modules)
    assert packages(modules) & OTHERS == set()


def test_completion_loads_nothing_slow(environment: dict[str, str]) -> None:
    env = {**environment, "_MTA_COMPLETE": "complete_bash", "COMP_WORDS": "mta user show al", "COMP_CWORD": "3"}
    out, modules = run([], env)
    assert out.split() == ["alice"]
    assert packages(modules) & SLOW == set()


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
