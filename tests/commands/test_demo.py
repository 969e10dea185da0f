"""`mta demo` on tiny models: every stage runs, the summary names what happened, a second run continues."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mta_cli.commands.demo import render_demo
from mta_cli.pipeline.demo import SHOWN_USERS, demo_tasks
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
        assert set(SHOWN_USERS) < {recipe["user"] for recipe in course["recipes"]}
        assert all(
            sum(a["weight"] for a in r["anchors"]) + r["null_weight"] == pytest.approx(1) for r in course["recipes"]
        )
        assert [c["user"] for c in course["comparisons"]] == list(SHOWN_USERS)
        assert all(set(c["answers"]) == {"base", "pooled", "fused", "adapted"} for c in course["comparisons"])
        assert course["verdict"]["users"] == len(course["recipes"]) == 10 and course["verdict"]["queries"] == 40
    assert set(voice["evaluation"]["methods"]) == {"base", "pooled", "adapted"}
    assert set(taste["evaluation"]["methods"]) == {"base", "pooled", "fused"}


def test_stacks_are_for_texts_and_labels_are_fused_only(ran: tuple[Path, Ran]) -> None:
    voice, taste = ran[1].json()["courses"]
    assert len(voice["adapted"]) == 10 and all(row["stack_bytes"] > 0 for row in voice["adapted"])
    assert taste["adapted"] == [] and all(c["answers"]["adapted"] is None for c in taste["comparisons"])
    assert all(c["answers"]["fused"] for c in taste["comparisons"])


def test_an_example_is_the_query_that_gained_most_of_those_answered_right_if_any(
    here: Path, ran: tuple[Path, Ran]
) -> None:
    for course in ran[1].json()["courses"]:
        personal = list(course["evaluation"]["methods"])[-1]
        with Registry.open(here / "store-demo") as reg:
            given = reg.evaluations.predictions.load_predictions(course["evaluation"]["evaluation"])
            for shown in course["comparisons"]:
                user = reg.users.get(shown["user"])
                prompts = {query.id: query.input for query in reg.items.queries(user.id, course["task"])}
                likelihoods = {(p.query_id, p.method): p.gold_loglik for p in given if p.user_id == user.id}
                gains = {prompts[q]: likelihoods[q, personal] - likelihoods[q, "pooled"] for q in prompts}
                mine = [p for p in given if p.user_id == user.id and p.method == personal]
                right = {prompts[p.query_id] for p in mine if p.answer == p.gold} or set(gains)
                best = max(gains[prompt] for prompt in right)
                assert len(gains) == 4 and shown["gain"] == pytest.approx(best) and shown["prompt"] in right
                assert gains[shown["prompt"]] == shown["gain"]


def test_new_people_are_no_candidates_and_the_person_is_told_where_the_store_is(ran: tuple[Path, Ran]) -> None:
    root, demo = ran
    anchors = {anchor["user"] for course in demo.json()["courses"] for anchor in course["bank"]["anchors"]}
    assert not anchors & set(SHOWN_USERS)
    assert str(root / "store-demo") in demo.err and "voice, 2 of 4" in demo.err


def test_the_store_is_whole_and_usable(here: Path) -> None:
    with Registry.open(here / "store-demo") as reg:
        assert reg.check_integrity() == []
    listed = mta_ok("--store", here / "store-demo", "user", "list", "--task", "voice", "--json").json()
    assert all(row["status"] == "adapted" for row in listed if row["name"] in SHOWN_USERS)


def test_questions_in_the_demos_store_show_as_many_items_as_its_models_were_trained_with(here: Path) -> None:
    items = mta_ok("--store", here / "store-demo", "config", "get", "prompt.history_items").out.split()
    assert "0" in items and {course.prompt.history_items for course in demo_tasks(full=False)} == {0}
    assert len({course.prompt.history_items for course in demo_tasks(full=True)}) == 1


def test_a_second_run_keeps_what_is_there_and_shows_the_summary(here: Path, ran: tuple[Path, Ran]) -> None:
    again = mta_ok("demo", "--device", "cpu", "--dtype", "float32")
    assert "nothing to do" in again.err and "adapted already" in again.err
    shown = " ".join(again.out.split())
    for words in (
        "All 40 held-out queries of 10 users",
        "A lower loss is better.",
        "Next: mta --store",
        "gained",
        *SHOWN_USERS,
    ):
        assert words in shown
    voice = ran[1].json()["courses"][0]["comparisons"][0]
    assert voice["prompt"] in again.out and voice["gold"] in again.out
    assert len(again.out.splitlines()) <= 2 * 24


def test_the_next_steps_parse_and_run(ran: tuple[Path, Ran], here: Path) -> None:
    shown = render(ran[1].json())
    steps = [line.partition("Next: mta ")[2] for line in shown.splitlines() if line.startswith("Next: ")]
    assert len(steps) == 2
    for step in steps:
        answers = mta_ok(*shlex.split(step), "--json").json()["answers"]
        assert answers["base"] and answers["fused"]


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("better", "models are better ("),
        ("worse", "models are worse ("),
        ("not told apart", "Nothing improved for sure ("),
    ],
)
def test_the_verdict_says_what_the_held_out_queries_say(
    ran: tuple[Path, Ran], here: Path, verdict: str, words: str
) -> None:
    result = ran[1].json()
    result["courses"] = result["courses"][:1]
    result["courses"][0]["verdict"] |= {"verdict": verdict, "base": -4.051, "before": -3.021, "after": -2.904}
    shown = render(result)
    assert words in shown and "loss base 4.05, common 3.02 → personal 2.90" in shown


def test_users_who_gained_nothing_are_said(ran: tuple[Path, Ran], here: Path) -> None:
    result = ran[1].json()
    for number, comparison in enumerate(result["courses"][0]["comparisons"]):
        comparison["gain"] = 0.1 if number == 0 else -0.1
    assert "it gained for 1 of 3 users only." in render(result)


def test_a_place_that_can_be_none() -> None:
    refused = mta("demo", "--keep", "~nobody-of-that-name/x", "--dry-run")
    assert refused.code == 4 and "--keep cannot be used" in refused.err


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_store_of_other_people_is_left_alone(tmp_path: Path, more: tuple[str, ...]) -> None:
    with Registry.open(tmp_path / "theirs", create=True) as reg:
        reg.users.add("somebody")
    refused = mta("demo", "--keep", tmp_path / "theirs", *more)
    assert refused.code == 4 and "holds other users" in refused.err
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
        "voice: recipes and stacks",
    }


def test_a_base_that_is_not_there_is_refused_with_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_MODELS_BASE", "nowhere")
    ran = mta("demo")
    assert ran.code == 3 and "nowhere" in ran.err


def test_the_full_demo_trains_more_and_stacks_for_labels_too() -> None:
    (voice, taste), full = demo_tasks(full=False), demo_tasks(full=True)
    assert [course.task for course in full] == ["voice", "taste"]
    assert taste.adapt is None and all(course.adapt is not None for course in (voice, *full))


def test_a_store_with_a_newer_bank_is_used_and_said(here: Path) -> None:
    """The last of this module, because it changes the store: as after --full, or with a demo of another version."""
    line = ("bank", "build", "-t", "taste", "--anchors", "2", "--epochs", "1", "--task-epochs", "1")
    mta_ok("--store", here / "store-demo", *line, "--device", "cpu", "--dtype", "float32")
    again = mta_ok("demo", "--device", "cpu", "--dtype", "float32", "--json")
    assert "Bank taste v2 is newer and is used instead." in again.err
    taste = again.json()["courses"][1]
    assert {recipe["version"] for recipe in taste["recipes"]} == {2} and taste["verdict"]["users"] == 10
