"""`mta demo` on tiny models: every stage runs, the summary names what happened, a second run continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mta_cli.pipeline.demo import SHOWN_USERS, demo_tasks
from store.registry import Registry
from tests.shell import Ran, mta, mta_ok


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> tuple[Path, Ran]:
    """One quick demo for all tests of this module, and where its store is."""
    from mta_cli.pipeline.models.pull import register_folder

    root = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTA_MODELS", str(root / "models"))
        patch.setenv("MTA_MODELS_BASE", "tiny")
        patch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
        patch.setenv("MTA_STORE", str(root / "store"))
        register_folder(tiny_base_path, name="tiny")
        register_folder(tiny_embedder_path, name="tiny-embedder")
        return root, mta_ok("demo", "--quick", "--device", "cpu", "--dtype", "float32", "--json")


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
    assert result["store"] == str(root / "store-demo") and not (root / "store").exists()
    taste, voice = result["courses"]
    assert (taste["task"], voice["task"]) == ("taste", "voice")
    for course in (taste, voice):
        assert course["imported"]["users"] >= 24 and len(course["bank"]["anchors"]) == 3
        assert [recipe["user"] for recipe in course["recipes"]] == list(SHOWN_USERS)
        assert all(
            sum(a["weight"] for a in r["anchors"]) + r["null_weight"] == pytest.approx(1) for r in course["recipes"]
        )
        assert [row["user"] for row in course["adapted"]] == list(SHOWN_USERS)
        assert all(row["recipe_bytes"] > 0 and row["stack_bytes"] > 0 for row in course["adapted"])
        assert [c["user"] for c in course["comparisons"]] == list(SHOWN_USERS)
        assert all(set(c["answers"]) == {"base", "fused", "adapted"} and c["gold"] for c in course["comparisons"])
    assert set(taste["evaluation"]["methods"]) == {"base", "pooled", "fused", "adapted"}
    assert voice["evaluation"] is None


def test_new_people_are_no_candidates_and_the_person_is_told_where_the_store_is(ran: tuple[Path, Ran]) -> None:
    root, demo = ran
    anchors = {anchor["user"] for course in demo.json()["courses"] for anchor in course["bank"]["anchors"]}
    assert not anchors & set(SHOWN_USERS)
    assert str(root / "store-demo") in demo.err and "taste, 2 of 4" in demo.err


def test_the_store_is_whole_and_usable(here: Path) -> None:
    with Registry.open(here / "store-demo") as reg:
        assert reg.check_integrity() == []
    listed = {row["name"]: row for row in mta_ok("--store", here / "store-demo", "user", "list", "--json").json()}
    assert all(listed[name]["status"] == "adapted" for name in SHOWN_USERS)


def test_a_second_run_keeps_what_is_there_and_shows_the_summary(here: Path, ran: tuple[Path, Ran]) -> None:
    again = mta_ok("demo", "--quick", "--device", "cpu", "--dtype", "float32")
    assert "nothing to do" in again.err and "adapted already" in again.err
    for words in (
        "Recipes",
        "Stacks",
        "held-out queries of 3 users",
        "Next:",
        f"--store {here / 'store-demo'}",
        *SHOWN_USERS,
    ):
        assert words in again.out
    gold = ran[1].json()["courses"][0]["comparisons"][0]["gold"]
    assert gold in again.out


def test_the_next_steps_parse_and_run(here: Path) -> None:
    first = mta_ok(
        "--store", here / "store-demo", "ask", "--user", SHOWN_USERS[0], "--task", "taste", "A quiet fair by the pond."
    )
    assert first.out.strip() in ("go", "bring friends", "maybe", "skip", "complain")


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
    assert {line["name"] for line in plan["plan"]} >= {"store", "base", "embedder", "taste: bank", "voice: adapted"}


def test_a_base_that_is_not_there_is_refused_with_its_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_MODELS_BASE", "nowhere")
    ran = mta("demo", "--quick")
    assert ran.code == 3 and "nowhere" in ran.err


def test_the_whole_demo_measures_everybody_who_is_new() -> None:
    taste, voice = demo_tasks(quick=False)
    assert taste.users == () and taste.is_evaluated and voice.users == SHOWN_USERS
