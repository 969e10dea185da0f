"""Errors carry commands and flags as values, and each surface words them."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest

from mta_cli.app import COMMAND_TARGETS
from mta_cli.commands.shared.context import GlobalFlags
from mta_cli.errors import BadInput, Command, Flag, Words, did_you_mean, words_to_text

ROOT = Path(__file__).parent.parent
LOWER_LAYERS = ("store", "mta_cli/engine", "mta_cli/pipeline", "mta_cli/lab", "mta_cli/serving")
OF_THE_COMMAND_LINE = re.compile(rf"(?<![\w-])--[a-z]|\bmta ({'|'.join(COMMAND_TARGETS)})\b")
OF_OTHER_PROGRAMS = re.compile(r"\b(ray start|vllm serve) .*")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("free some space", "free some space"),
        (Flag("dtype", "bfloat16"), "--dtype bfloat16"),
        (Flag("can_anchor"), "--can-anchor"),
        (Flag("top_k", 3), "--top-k 3"),
        (Flag("time", ""), "--time ''"),
        (Command("init"), "mta init"),
        (Command("bank rm", "my bank", bank_version=2), "mta bank rm 'my bank' --bank-version 2"),
        (Command("bank build", t="films", refresh=True, base=None), "mta bank build -t films --refresh"),
        (("use ", (Flag("rank", 4), ", or "), Command("doctor")), "use --rank 4, or mta doctor"),
    ],
)
def test_the_words_of_the_command_line(words: Words, told: str) -> None:
    assert words_to_text(words) == told
    assert str(BadInput(words)) == told


def test_a_command_is_equal_by_its_value() -> None:
    assert Command("bank build", task="films") == Command("bank build", task="films")
    assert Command("bank build", task="films") != Command("bank build", task="books")
    assert hash(Command("user add", "bryn")) == hash(Command("user add", "bryn"))


def test_an_error_keeps_its_values_on_the_way_to_another_process() -> None:
    hint = (Command("bank rm", "films", bank_version=2), ", or ", Flag("rank", 4))
    error = pickle.loads(pickle.dumps(BadInput((Flag("rank", 8), " is too much"), hint=hint, faults=("a",))))
    assert str(error) == "--rank 8 is too much" and error.hint == hint and error.faults == ("a",)


def test_the_store_that_was_given_is_named_in_commands_on_it() -> None:
    given = GlobalFlags(store=Path("a store"))
    assert given.text_with_store(("first ", Command("bank list"))) == "first mta --store 'a store' bank list"
    assert given.text_with_store((Command("snapshot", "TO"), ", ", Flag("task"))) == "mta snapshot TO, --task"
    assert GlobalFlags().text_with_store(Command("bank list")) == "mta bank list"


def test_what_was_meant_else_the_other_words() -> None:
    assert did_you_mean(["films"], Command("task list")) == "did you mean films?"
    assert did_you_mean([], Command("task list")) == Command("task list")


def error_names(trees: dict[Path, ast.Module]) -> set[str]:
    """The names of MtaError and all classes below it."""
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    names, before = {"MtaError"}, 0
    while len(names) > before:
        before = len(names)
        names |= {one.name for one in classes if any(isinstance(b, ast.Name) and b.id in names for b in one.bases)}
    return names


def test_lower_layers_leave_the_words_of_the_command_line_to_it() -> None:
    paths = [path for folder in ("store", "mta_cli") for path in sorted((ROOT / folder).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    names = error_names(trees)
    assert {"NotFound", "UserInUse", "EngineUnavailable"} < names
    found = [
        f"{path.relative_to(ROOT)}:{text.lineno}: {text.value}"
        for path, tree in trees.items()
        if str(path.relative_to(ROOT)).startswith(LOWER_LAYERS)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names
        for text in ast.walk(call)
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
        if OF_THE_COMMAND_LINE.search(OF_OTHER_PROGRAMS.sub("", text.value))
    ]
    assert found == []
