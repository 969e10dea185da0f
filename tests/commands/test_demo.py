"""`mta demo` on tiny models: every stage runs, the summary names what happened, a second run continues."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mta_cli.commands.demo import render_demo
from mta_cli.pipeline.demo import SAMPLE_USERS, demo_tasks
from mta_cli.pipeline.evaluation.ladder_text import verdict_lines
from store.registry import Registry
from tests.shell import Ran, mta, mta_ok


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> tuple[Path, Ran]:
    """One demo for all tests of this module, and where its store is."""
    from mta_cli.pipeline.models.pull import register_folder

    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(root / "models"))
        patch.setenv("MTA_MODELS_BASE", "tiny")
        patch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
        patch.setenv("MTA_STORE", str(root / "store"))
        register_folder(tiny_base_path, name="tiny")
        register_folder(tiny_embedder_path, name="tiny-embedder")
        return root, mta_ok("demo", "--device", "cpu", "--dtype", "float32", "--json")


def render(result: dict[str, Any]) -> str:
    """The demo's last screens, on a terminal that wraps no line."""
    console = Console(width=1000)
    with console.capture() as captured:
        console.print(render_demo(result))
    return captured.get()


@pytest.fixture
def here(ran: tuple[Path, Ran], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment in which the demo ran."""
    root = ran[0]
    for name, value in (("MODELS", root / "models"), ("STORE", root / "store")):
        monkeypatch.setenv(f"MTA_{name}", str(value))
    monkeypatch.setenv("MTA_MODELS_BASE", "tiny")
    monkeypatch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
    return root


def test_every_stage_is_in_the_document(ran: tuple[Path, Ran]) -> None:
    root, demo = ran
    result = demo.json()
    assert result["store"] == str(root / "store-demo") and not (root / "store").exists() and result["quick"]
    voice, taste = result["courses"]
    assert (voice["task"], taste["task"]) == ("voice", "taste")
    for course, anchors in ((voice, 8), (taste, 4)):
        assert course["imported"]["users"] >= 24 and len(course["bank"]["anchors"]) == anchors
        assert set(SAMPLE_USERS) < {recipe["user"] for recipe in course["recipes"]}
        assert all(
            sum(a["weight"] for a in r["anchors"]) + r["null_weight"] == pytest.approx(1) for r in course["recipes"]
        )
        assert len(course["adapted"]) == 10 and all(row["stack_bytes"] > 0 for row in course["adapted"])
        assert (course["ladder"]["units"], course["ladder"]["questions"]) == (10, 40)
    names = [[step["step"] for step in course["ladder"]["steps"]] for course in (voice, taste)]
    assert names[0] == ["no-model", "base", "common", "fused", "adapted", "another's"]
    assert names[1] == ["no-model", "base", "common", "common+memory", "fused", "adapted", "another's"]


def test_examples_are_held_out_questions_with_the_answer_of_every_step(here: Path, ran: tuple[Path, Ran]) -> None:
    for course in ran[1].json()["courses"]:
        assert len(course["examples"]) == 3 and "largest, the median and the smallest gain" in course["example_rule"]
        assert len({one["question"] for one in course["examples"]}) == 1, "the users are told apart by nothing else"
        with Registry.open(here / "store-demo") as reg:
            for example in course["examples"]:
                queries = reg.items.queries(reg.users.get(example["user"]).id, course["task"])
                assert (example["question"], example["gold"]) in [(query.input, query.gold) for query in queries]
                assert set(example["answers"]) == {step["step"] for step in course["ladder"]["steps"]}


def test_new_people_are_no_candidates_and_the_person_is_told_where_the_store_is(ran: tuple[Path, Ran]) -> None:
    root, demo = ran
    anchors = {anchor["user"] for course in demo.json()["courses"] for anchor in course["bank"]["anchors"]}
    assert not anchors & set(SAMPLE_USERS)
    assert str(root / "store-demo") in demo.err and "voice, 2 of 4" in demo.err


def test_the_store_is_whole_and_usable(here: Path) -> None:
    with Registry.open(here / "store-demo") as reg:
        assert reg.check_integrity() == []
    listed = mta_ok("--store", here / "store-demo", "user", "list", "--task", "voice", "--json").json()
    assert all(row["status"] == "adapted" for row in listed if row["name"] in SAMPLE_USERS)


def test_questions_in_the_demos_store_show_as_many_items_as_its_models_were_trained_with(here: Path) -> None:
    items = mta_ok("--store", here / "store-demo", "config", "get", "prompt.history_items").out.split()
    assert "0" in items and {course.prompt.history_items for course in demo_tasks(full=False)} == {0}
    assert len({course.prompt.history_items for course in demo_tasks(full=True)}) == 1


def test_a_second_run_keeps_what_is_there_and_shows_the_summary(here: Path, ran: tuple[Path, Ran]) -> None:
    again = mta_ok("demo", "--device", "cpu", "--dtype", "float32")
    assert "nothing to do" in again.err and "adapted already" in again.err
    shown = " ".join(again.out.split())
    for course in ran[1].json()["courses"]:
        for line in verdict_lines(course["ladder"]):
            assert line in shown
        for example in course["examples"]:
            assert f"{example['user']}" in shown and " ".join(example["question"].split()) in shown
            assert f"own {' '.join(example['gold'].split())[:40]}" in shown.replace("own words", "own")


def test_users_who_were_asked_the_same_are_below_each_other(ran: tuple[Path, Ran]) -> None:
    result = ran[1].json()
    examples = result["courses"][0]["examples"]
    for number, example in enumerate(examples):
        example |= {"user": f"user{number}", "gold": f"gold {number}"}
        example["answers"] |= {"base": "of the base", "common": "of all", "adapted": f"of user {number}"}
    lines = [" ".join(line.split()) for line in render(result).splitlines()]
    start = lines.index(" ".join(examples[0]["question"].split()))
    assert lines[start + 1 : start + 9] == [
        "base of the base",
        "common of all",
        "user0 of user 0",
        "own words gold 0",
        "user1 of user 1",
        "own words gold 1",
        "user2 of user 2",
        "own words gold 2",
    ]
    examples[1]["answers"]["common"] = "of all, with own examples"
    assert "user1: " + examples[1]["question"] in render(result), "the common model knew who asks"


def test_an_example_shows_the_base_the_common_and_the_personal_answer_beside_the_users_own(
    ran: tuple[Path, Ran],
) -> None:
    result = ran[1].json()
    names = ["no-model", "base", "base+examples", "common", "common+memory", "fused", "adapted", "another's"]
    example = result["courses"][1]["examples"][0]
    example["gold_logliks"] = {name: math.log(0.25) for name in names}
    example |= {"gold": "mine", "answers": {name: f"of {name}" for name in names} | {"adapted": "a\x1b[2J" + "b" * 99}}
    lines = render(result).splitlines()
    start = lines.index(f"{example['user']}: {example['question']}", lines.index(result["courses"][1]["description"]))
    told = [line.split(None, 1) for line in lines[start + 1 : start + 5]]
    assert told[0] == ["base+examples", "of base+examples (own at 25 %)"]
    assert told[1] == ["common+memory", "of common+memory (own at 25 %)"]
    assert told[2][0] == "adapted" and told[2][1].startswith("a[2Jbbb") and "b… (own at 25 %)" in told[2][1]
    assert told[3] == ["own", "mine"]


def test_the_next_steps_parse_and_run(ran: tuple[Path, Ran], here: Path) -> None:
    shown = render(ran[1].json())
    steps = [line.partition("Next: mta ")[2] for line in shown.splitlines() if line.startswith("Next: ")]
    assert len(steps) == 2
    for step in steps:
        answers = mta_ok(*shlex.split(step), "--json").json()["answers"]
        assert all(answers[mode] for mode in ("base", "common", "fused", "adapted"))


def test_a_place_that_can_be_none() -> None:
    refused = mta("demo", "--keep", "~nobody-of-that-name/x", "--dry-run")
    assert refused.code == 4 and "--keep cannot be used" in refused.err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_store_of_other_people_is_left_alone(tmp_path: Path, more: tuple[str, ...]) -> None:
    with Registry.open(tmp_path / "theirs", create=True) as reg:
        reg.users.add("somebody")
    refused = mta("demo", "--keep", tmp_path / "theirs", *more)
    assert refused.code == 4 and "contains other users" in refused.err
    with Registry.open(tmp_path / "theirs") as reg:
        assert reg.users.names() == ["somebody"] and reg.banks.all() == []


def test_keep_says_where_and_a_dry_run_makes_nothing(here: Path, tmp_path: Path) -> None:
    plan: dict[str, Any] = json.loads(mta_ok("demo", "--keep", tmp_path / "mine", "--dry-run", "--json").out)
    assert plan["store"] == str(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert {line["name"] for line in plan["plan"]} >= {
        "store",
        "base",
        "embedder",
        "taste: bank",
        "taste: recipes and stacks",
        "voice: recipes and stacks",
    }


def test_a_base_that_is_not_there_is_refused_with_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_MODELS_BASE", "nowhere")
    ran = mta("demo")
    assert ran.code == 3 and "nowhere" in ran.err


def test_a_store_with_a_newer_bank_is_used_and_said(here: Path) -> None:
    """The last of this module, because it changes the store: as after --full, or with a demo of another version."""
    line = ("bank", "build", "-t", "taste", "--anchors", "2", "--epochs", "1", "--task-epochs", "1")
    mta_ok("--store", here / "store-demo", *line, "--device", "cpu", "--dtype", "float32")
    again = mta_ok("demo", "--device", "cpu", "--dtype", "float32", "--json")
    assert "Bank taste v2 is newer and is used instead." in again.err
    taste = again.json()["courses"][1]
    assert {recipe["version"] for recipe in taste["recipes"]} == {2} and taste["ladder"]["units"] == 10
