"""`mta eval` from outside: documents and tables, plans that change nothing, mistakes in one line, and kill -9."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from store.registry import Registry
from tests.commands.test_bank import refused
from tests.lab.evaluation.trial import timeless
from tests.pipeline import town
from tests.shell import mta, mta_ok

BANK = ("--anchors", 2, "--epochs", 1, "--task-epochs", 1, "--min-items", 5)
SMALL = (*BANK, "--shots", 3, "--folds", 2, "--history-items", 2, "--device", "cpu", "--dtype", "float32")
METHODS = "majority,pooled-rag,stack"
RUN = ("eval", "run", "--task", "lamp-2", "--methods", METHODS, *SMALL)
KEYS = """task metric users queries shots seed folds history_items anchors placement base evaluation reference methods
differences costs power settings calibration"""

KILLED = """
import os, signal, sys
from mta_cli.app import run_command_line
from store.tables.{module} import {noun}

honest, calls = {noun}.{verb}, []

def dying(self, *args, **more):
    done = honest(self, *args, **more)
    calls.append(1)
    if len(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

{noun}.{verb} = dying
sys.exit(run_command_line(sys.argv[1:]))
"""


@pytest.fixture
def peopled(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with the people of `town`, and small banks."""
    monkeypatch.setenv("MTA_BANK_RANK", "2")
    with Registry.open(store_root, create=True) as reg:
        town.people(reg, items=6)
    return store_root


@pytest.fixture
def reg(peopled: Path) -> Iterator[Registry]:
    with Registry.open(peopled) as opened:
        yield opened


def ran(*more: object) -> dict[str, Any]:
    document: dict[str, Any] = mta_ok(*RUN, *more, "--json").json()
    return document


def test_from_a_run_to_its_removal(peopled: Path, tmp_path: Path) -> None:
    result = ran("--reference", "stack")
    assert set(KEYS.split()) <= set(result) and list(result["methods"]) == METHODS.split(",")
    assert (result["task"], result["metric"], result["base"], result["reference"]) == (
        "lamp-2",
        "accuracy",
        "tiny",
        "stack",
    )
    assert set(result["methods"]["stack"]["accuracy"]) == {"value", "low", "high"}
    assert {"a", "b", "metric", "value", "low", "high", "p", "p_holm"} == set(result["differences"][0])
    assert {"bytes", "seconds", "seconds_per_query", "tokens_per_second"} == set(result["costs"]["stack"])

    number = result["evaluation"]
    (row,) = mta_ok("eval", "list", "--json").json()
    assert {key: row[key] for key in ("evaluation", "task", "shots", "folds", "seed", "status")} == {
        "evaluation": number,
        "task": "lamp-2",
        "shots": 3,
        "folds": 2,
        "seed": 0,
        "status": "done",
    }
    assert row["methods"] == METHODS.split(",")
    assert mta_ok("eval", "show", number, "--json").json() == result
    assert all(name in mta_ok("eval", "show", number).out for name in METHODS.split(","))
    assert "lamp-2" in mta_ok("eval", "list").out

    files = mta_ok("eval", "report", number, number, "--to", tmp_path / "report", "--json").json()["files"]
    assert {Path(file).suffix for file in files} >= {".md", ".html", ".png"}
    assert (
        all(Path(file).stat().st_size for file in files) and "stack" in (tmp_path / "report" / "report.md").read_text()
    )

    refused_by_nobody = mta("eval", "rm", number)
    assert refused_by_nobody.code == 2 and "--yes" in refused_by_nobody.err
    assert mta_ok("eval", "rm", number, "--yes", "--json").json() == {"evaluation": number, "answers": 72, "banks": 2}
    assert mta_ok("eval", "list", "--json").json() == []
    assert not list((peopled / "adapters").rglob("*.safetensors")) and mta_ok("doctor", "--json").json()["ok"]


def test_an_existing_bank_is_measured_on_named_users(peopled: Path, tmp_path: Path) -> None:
    """Users who did not consent are in no bank."""
    build = ("--rank", 2, "--history-items", 2, "--device", "cpu", "--dtype", "float32")
    for name in ("ida", "user8"):
        mta_ok("user", "consent", name, "--no-can-anchor")
    mta_ok("bank", "build", "--task", "lamp-2", *BANK, *build)
    names = tmp_path / "names.txt"
    names.write_text("ida\nuser8\n")
    on_bank = ("eval", "run", "--task", "lamp-2", "--bank", "lamp-2", "--methods", "majority,pooled-rag", "--shots", 3)
    result = mta_ok(*on_bank, "--test-users", names, "--device", "cpu", "--json").json()
    assert (result["users"], result["anchors"], result["history_items"]) == (2, 2, 2)
    names.write_text("ida\nuser0\n")
    refused(mta(*on_bank, "--test-users", names), 4, "contains data of 'user0'")
    refused(mta(*on_bank, "--folds", 2, "--anchors", 2), 2, "bank lamp-2 is already built")
    refused(mta(*RUN, "--test-users", names), 2, "--bank BANK")


def test_a_run_of_the_same_goes_over_nothing_again(reg: Registry, tmp_path: Path) -> None:
    first, again = ran(), mta_ok(*RUN, "--json")
    assert again.json() == first and "nothing to compute" in again.err
    other = ran("--seed", 1)
    assert other["evaluation"] != first["evaluation"] and other["seed"] == 1
    both = mta_ok("eval", "show", first["evaluation"], other["evaluation"], "--reference", "stack", "--json").json()
    assert both["seeds"] == [0, 1] and {row["a"] for row in both["differences"]} == {"stack"}
    assert "seeds 0 and 1" in mta_ok("eval", "show", first["evaluation"], other["evaluation"]).out
    file = tmp_path / "other.json"
    done = mta_ok("eval", "export", other["evaluation"], "--to", file, "--json").json()
    assert done["bytes"] == file.stat().st_size and done["methods"] == METHODS.split(",")
    told = mta_ok("eval", "show", first["evaluation"], file, "--json").json()
    assert told["seeds"] == [0, 1] and told["users"] == both["users"]
    assert "12 users" in mta_ok("eval", "export", other["evaluation"], "--to", file).out
    nowhere = ("--store", tmp_path / "nowhere", "eval")
    mta_ok(*nowhere, "report", file, "--to", tmp_path / "report")
    assert "stack" in (tmp_path / "report" / "report.md").read_text()
    assert mta_ok(*nowhere, "show", file, "--json").json()["users"] == 12 and not (tmp_path / "nowhere").exists()
    refused(mta(*nowhere, "show", file, 1), 3, "no store")
    assert {row["status"] for row in mta_ok("user", "list", "--json").json()} == {"new"}
    assert mta_ok("bank", "list", "--json").json() == []
    refused(mta("user", "fuse", "ida", "--task", "lamp-2"), 3, "no bank for task lamp-2")
    refused(mta("bank", "show", "eval lamp-2"), 3, "eval lamp-2")


def test_a_dry_run_shows_power_and_roles_and_changes_nothing(reg: Registry) -> None:
    before = reg.count_rows()
    plan = {line["name"]: line for line in mta_ok(*RUN, "--dry-run", "--json").json()["plan"]}
    assert "a difference of 0.2" in plan["power"]["value"] and plan["power"]["value"].endswith("with 80 % probability")
    assert (plan["users"]["value"], plan["methods"]["value"]) == (
        "12 tested, 24 queries",
        "majority, pooled-rag, stack",
    )
    assert plan["eval.shots"]["origin"] == "flag --shots" and plan["bank.rank"]["origin"] == "environment MTA_BANK_RANK"
    assert "power" in mta_ok(*RUN, "--dry-run").out
    mta_ok("eval", "tune", "--task", "lamp-2", "--methods", "stack", *SMALL, "--dry-run")
    assert reg.count_rows() == before


def test_settings_of_methods_on_the_line(reg: Registry) -> None:
    plain = ran("--methods", "stack")
    given = ran("--methods", "stack", "--set", "stack.steps=2", "--set", "stack.learning_rate=1e-2")
    assert (given["settings"]["stack"]["steps"], given["settings"]["stack"]["learning_rate"]) == (2, 0.01)
    assert {**plain["settings"]["stack"], "steps": 2, "learning_rate": 0.01} == given["settings"]["stack"]
    assert "steps" not in plain["settings"]["stack"], "the number of shots decides"
    assert given["evaluation"] == plain["evaluation"] and len(reg.evaluations.predictions.load_predictions(1)) == 48


def test_what_tune_chose_is_what_run_takes(peopled: Path) -> None:
    tune = mta_ok("eval", "tune", "--task", "lamp-2", "--methods", "mta-recipe,majority", *SMALL, "--json").json()
    assert [(row["method"], row["fold"]) for row in tune["tuned"]] == [("mta-recipe", 0), ("mta-recipe", 1)]
    chosen = [row["settings"] for row in tune["tuned"]]
    result = ran("--methods", "mta-recipe")
    assert result["evaluation"] == tune["evaluation"]
    assert result["settings"]["mta-recipe"] == (chosen[0] if chosen[0] == chosen[1] else chosen)
    refused(mta("eval", "tune", "--task", "lamp-2", "--methods", "majority", *SMALL), 2, "mta eval methods")


def test_methods_are_listed(peopled: Path) -> None:
    rows = {row["method"]: row for row in mta_ok("eval", "methods", "--json").json()}
    assert rows["stack"]["settings"]["rank"] == 2 and rows["base"]["settings"] == {}
    assert all(name in mta_ok("eval", "methods").out for name in rows)


def test_mistakes_in_one_line(reg: Registry, tmp_path: Path) -> None:
    before = reg.count_rows()
    task = ("eval", "run", "--task", "lamp-2")
    refused(mta("eval", "run"), 2, "--task")
    refused(mta("eval", "run", "--task", "lamp-22"), 3, "lamp-22", "lamp-2")
    refused(mta(*task, "--methods", "mta,mtb"), 2, "no method 'mtb'", "mta")
    refused(mta(*task, "--methods", ","), 2, "no method was named")
    refused(mta(*task, "--reference", "mat"), 2, "no method 'mat'")
    refused(mta(*task, "--shots", 0), 2, "eval.shots = 0", "the least is 1")
    refused(mta(*task, "--placement", "nowhere"), 2, "late")
    refused(mta(*task, "--base", "gone"), 3, "gone")
    refused(mta(*RUN, "--folds", 30), 4, "30 folds", "12 users")
    refused(mta(*RUN, "--set", "steps=3"), 2, "METHOD.SETTING=VALUE")
    refused(mta(*RUN, "--set", "stack.stepz=3"), 2, "no setting stepz", "learning_rate")
    refused(mta(*RUN, "--set", "stack.steps=x"), 2, "stack.steps = 'x'", "whole number")
    refused(mta(*RUN, "--set", "stack.rank=0"), 2, "stack.rank = '0'", "above 0")
    refused(mta(*RUN, "--set", "mta.steps=3"), 2, "not among the methods")
    refused(mta(*RUN, "--set", "majority.x=3"), 2, "majority has no setting x", "none")
    for command in (("show", 9), ("rm", 9, "--yes"), ("report", 9, "--to", tmp_path / "out")):
        refused(mta("eval", *command), 3, "no evaluation 9", "mta eval list")
    for command in (("show", 10**20), ("rm", 10**20, "--yes")):
        refused(mta("eval", *command), 4, "number is too large")
    refused(mta("eval", "show", tmp_path / "x"), 3, "neither the number of an evaluation nor a file")
    refused(mta("eval", "rm", "x"), 2, "NUMBER")
    refused(mta("eval", "show"), 2, "NUMBER")
    refused(mta("eval", "export", 9, "--to", tmp_path / "out"), 3, "no evaluation 9")
    assert reg.count_rows() == before and not (tmp_path / "out").exists()


def test_mistakes_that_the_data_makes(reg: Registry) -> None:
    refused(mta("eval", "run", "--task", "lamp-4", *SMALL), 4, "lamp-4", "0 users")
    ran_out = mta(*RUN, "--anchors", 9)
    assert ran_out.code == 4 and "Fold 1: 9 anchors were asked for" in ran_out.err and "Traceback" not in ran_out.err
    assert reg.evaluations.all() == [], "the plan is refused before anything is written"
    begun = reg.evaluations.get_or_create_evaluation("key", "lamp-2", {}, [])
    refused(mta("eval", "show", begun.id), 3, f"Evaluation {begun.id} has no result yet", "mta eval run")


def test_an_answer_that_is_no_yes_removes_nothing(reg: Registry) -> None:
    number = reg.evaluations.get_or_create_evaluation("k", "lamp-2", {}, []).id
    refused(mta("eval", "rm", number, stdin="n\n"), 1, "nothing was changed")
    assert mta_ok("eval", "rm", number, stdin="y\n").out and reg.evaluations.all() == []


@pytest.mark.parametrize(
    ("module", "noun", "verb", "number"),
    [("banks", "Banks", "set_task_adapter", 2), ("predictions", "Predictions", "save_cells", 3)],
    ids=["while a bank is built", "while methods answer"],
)
def test_killed_in_the_middle_and_run_again_it_is_the_same(
    peopled: Path, tmp_path: Path, module: str, noun: str, verb: str, number: int
) -> None:
    shutil.copytree(peopled, tmp_path / "whole")
    expected = mta_ok("--store", tmp_path / "whole", *RUN, "--json").json()
    script = KILLED.format(module=module, noun=noun, verb=verb, number=number)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    died = subprocess.run(
        [sys.executable, "-c", script, *map(str, RUN)], env=environment, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    (listed,) = mta_ok("eval", "list", "--json").json()
    assert listed["status"] == "interrupted"
    result = ran()
    assert result["evaluation"] == listed["evaluation"] and timeless(result) == timeless(expected)
    with Registry.open(peopled) as reg:
        assert (
            reg.check_integrity() == []
            and len(reg.evaluations.predictions.load_predictions(result["evaluation"])) == 72
        )
