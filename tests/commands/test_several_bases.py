"""One store, two bases: lists say what belongs to which, commands choose or name the way out; one base is not named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mta_cli.errors import Command
from mta_cli.options import ModelOptions
from mta_cli.pipeline.bases_in_use import base_name_if_several, choose_base
from mta_cli.pipeline.models.pull import register_folder
from mta_cli.pipeline.users.dependents import refresh_command
from mta_cli.pipeline.users.detail import load_user_detail
from store.registry import Registry
from tests import tiny
from tests.commands.test_bank import QUICK, refused
from tests.pipeline import town
from tests.shell import mta, mta_ok

CPU = ("--device", "cpu", "--dtype", "float32")
TASK = ("--task", "lamp-2")
ADAPT = ("--shots", 3, "--steps", 6, *CPU)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_base_path: Path, tiny_embedder_path: Path) -> Path:
    """A folder with models and two stores, from which each test gets a copy of one.

    `one` has the people of `town`, a bank on `tiny`, and ida's model on it. `two` has also a bank on `other`, and there
    the models of ida and jon.
    """
    root = tmp_path_factory.mktemp("bases")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("CONFIG", root / "none.toml"), ("MODELS", root / "models"), ("STORE", root / "two")):
            patch.setenv(f"MTA_{name}", str(value))
        patch.setenv("MTA_MODELS_BASE", "tiny")
        patch.setenv("MTA_MODELS_EMBEDDER", "tiny-embedder")
        (root / "none.toml").touch()
        register_folder(tiny_base_path, name="tiny")
        register_folder(tiny_embedder_path, name="tiny-embedder")
        with Registry.open(root / "two", create=True) as reg:
            town.people(reg)
        mta_ok("bank", "build", *TASK, *QUICK)
        mta_ok("user", "adapt", "ida", *ADAPT)
        shutil.copytree(root / "two", root / "one")
        register_folder(tiny.make_base(root / "other", seed=1), name="other")
        mta_ok("bank", "build", *TASK, *QUICK, "--base", "other")
        mta_ok("user", "adapt", "jon", *ADAPT, "--base", "other")
        mta_ok("user", "fuse", "ida", *CPU, "--base", "other")
    return root


@pytest.fixture
def one(made: Path, store_root: Path) -> Path:
    """The store with a bank on `tiny`."""
    shutil.copytree(made / "one", store_root)
    return store_root


@pytest.fixture
def two(made: Path, store_root: Path) -> Path:
    """The store with a bank on each base."""
    register_folder(made / "other", name="other")
    shutil.copytree(made / "two", store_root)
    return store_root


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """No base is chosen by any setting."""
    monkeypatch.delenv("MTA_MODELS_BASE")


def lists() -> dict[str, str]:
    """What the lists and pages that name banks and users' models print."""
    commands = ("bank list", "bank show lamp-2", "user list", "user show ida", "model list")
    return {command: mta_ok(*command.split()).out for command in commands}


def test_every_list_says_which_base(two: Path) -> None:
    shown = lists()
    banks = [line.split() for line in shown["bank list"].splitlines()]
    assert banks[0][3] == "base" and [row[1:4:2] for row in banks[2:]] == [["1", "tiny"], ["2", "other"]]
    assert "for task lamp-2 on other: 3 anchors" in shown["bank show lamp-2"]
    assert "for task lamp-2 on tiny: 3 anchors" in mta_ok("bank", "show", "lamp-2", "--bank-version", 1).out
    rows = {line.split()[0]: line for line in shown["user list"].splitlines() if line.strip()}
    assert rows["ida"].rstrip().endswith("other (fused), tiny (adapted)") and " adapted " in rows["ida"]
    assert rows["jon"].rstrip().endswith("other (adapted)") and "(" not in rows["kim"]
    for part in ("lamp-2 v1 on tiny: a lora", "lamp-2 v2 on other by evidence", "lamp-2 v1 on tiny by evidence"):
        assert part in shown["user show ida"]
    models = {line.split()[0]: line for line in shown["model list"].splitlines() if line.strip()}
    assert "lamp-2 v1" in models["tiny"] and "lamp-2 v2" in models["other"] and "lamp-2" not in models["tiny-embedder"]


def test_one_base_is_named_nowhere(one: Path) -> None:
    shown = lists()
    columns = {"bank list": "base", "user list": "models on", "model list": "banks"}
    assert not any(column in shown[command].splitlines()[0] for command, column in columns.items())
    assert not any("tiny" in shown[command] for command in ("bank list", "bank show lamp-2", "user list"))
    assert " on tiny" not in shown["user show ida"]
    with Registry.open(one) as reg:
        assert load_user_detail(reg, "ida").base is None


def test_documents_say_it_in_any_case(one: Path) -> None:
    fingerprint = mta_ok("model", "show", "tiny", "--json").json()["fingerprint"]
    (bank,) = mta_ok("bank", "list", "--json").json()
    assert (bank["base"], bank["base_name"]) == (fingerprint, "tiny")
    users = {row["name"]: row["bases"] for row in mta_ok("user", "list", "--json").json()}
    assert users["ida"] == {"tiny": "adapted"} and users["kim"] == {}
    shown = mta_ok("user", "show", "ida", "--json").json()
    assert {part["base_name"] for kind in ("recipes", "stacks", "rests_on") for part in shown[kind]} == {"tiny"}
    assert {row["name"]: row.get("banks") for row in mta_ok("model", "list", "--json").json()}["tiny"] == ["lamp-2 v1"]


def test_a_bank_on_another_base_takes_nobodys_model_away(two: Path) -> None:
    """It is the next version of the same name, and the models on the other base still answer."""
    users = {row["name"]: row["status"] for row in mta_ok("user", "list", *TASK, "--json").json()}
    assert users["ida"] == "adapted"
    answers = {base: ask("ida", "--base", base) for base in ("tiny", "other")}
    assert {base: answer["source"]["mode"] for base, answer in answers.items()} == {"tiny": "adapted", "other": "fused"}
    assert {base: answer["source"]["version"] for base, answer in answers.items()} == {"tiny": 1, "other": 2}


def ask(user: str, *more: object) -> dict[str, dict[str, object]]:
    return mta_ok("ask", "--user", user, *TASK, *CPU, *more, "--json", "a film").json()  # type: ignore[no-any-return]


def test_the_base_with_the_users_models_answers_where_none_was_chosen(two: Path, unsaid: None) -> None:
    ran = mta_ok("ask", "--user", "jon", *TASK, *CPU, "--json", "a film")
    assert ran.json()["source"]["version"] == 2 and "Using base other, because jon's models are on it" in ran.err
    compared = mta_ok("compare", "--user", "jon", *TASK, *CPU, "--json", "a film").json()
    assert compared["answers"]["adapted"] is not None
    talked = mta_ok("chat", "--user", "jon", *TASK, *CPU, "--no-save", stdin="a film\n/quit\n")
    assert "bank lamp-2 v2 on other" in talked.err


def test_a_user_with_models_on_two_bases_is_asked_about(two: Path, unsaid: None, tmp_path: Path) -> None:
    commands: tuple[tuple[object, ...], ...] = (
        ("ask", "--user", "ida", *TASK, "a film"),
        ("compare", "--user", "ida", *TASK, "a film"),
        ("user", "export", "ida", "--to", tmp_path / "out"),
    )
    for command in commands:
        refused(
            mta(*command), 2, "ida has models on several: other, tiny", "--base other, or --base tiny", "models.base"
        )
    for command in (("user", "fuse", "kim"), ("user", "adapt", "kim"), ("user", "adapt", *TASK)):
        refused(mta(*command), 2, "the store has banks on several: other, tiny", "--base other, or --base tiny")
    assert not (tmp_path / "out").exists()


def test_the_default_answers_where_a_model_is_on_it(two: Path, unsaid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry.open(two) as reg:
        ida, jon, kim = (reg.users.get(name) for name in ("ida", "jon", "kim"))
        assert [choose_base(reg, "tiny", "lamp-2", user) for user in (ida, jon, kim)] == ["tiny", "other", "tiny"]
        assert choose_base(reg, "tiny") == "tiny" and choose_base(reg, "tiny", "free", jon) == "tiny"


@pytest.mark.parametrize("said", ["flag", "settings"])
def test_a_base_that_was_chosen_is_taken_at_its_word(two: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer by the base alone says where the user's models are."""
    monkeypatch.delenv("MTA_MODELS_BASE")
    chosen = ("--base", "tiny") if said == "flag" else ()
    if said == "settings":
        (two / "mta.toml").write_text('[models]\nbase = "tiny"\n')
    ran = mta_ok("ask", "--user", "jon", *TASK, *CPU, *chosen, "a film")
    assert "on tiny yet. Use --base other, or mta user fuse jon --task lamp-2 --base tiny" in ran.err
    ran = mta("ask", "--user", "jon", *TASK, "--mode", "adapted", *CPU, *chosen, "a film")
    refused(ran, 3, "jon has no stack for lamp-2 on tiny", "--base other, or mta user adapt jon")


def test_an_export_is_of_the_base_that_is_meant(two: Path, unsaid: None, tmp_path: Path) -> None:
    for user, flags, base in (("jon", (), "other"), ("ida", ("--base", "tiny"), "tiny")):
        mta_ok("user", "export", user, *flags, "--to", tmp_path / user)
        config = json.loads((tmp_path / user / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == base
    ran = mta("user", "export", "jon", "--base", "tiny", "--to", tmp_path / "none")
    refused(ran, 3, "jon has no fusion for lamp-2 on tiny", "--base other, or mta user fuse jon")


def test_each_bases_bank_is_refreshed_by_itself(two: Path) -> None:
    with Registry.open(two) as reg:
        banks = {version: reg.banks.get("lamp-2", version) for version in (1, 2)}
        commands = {version: refresh_command(reg, bank) for version, bank in banks.items()}
        gone = [reg.banks.anchors(bank.id)[0].user for bank in banks.values()]
    assert commands[1] == Command("bank build", task="lamp-2", refresh=True, base="tiny")
    assert commands[2] == Command("bank build", task="lamp-2", refresh=True, base="other")
    for name in dict.fromkeys(gone):
        mta_ok("user", "rm", str(name), "--yes")
    done = mta_ok(*str(commands[1]).split()[1:], "--json").json()
    assert done["version"] == 1 and done["replaced"] and not any(anchor["stale"] for anchor in done["anchors"])
    assert any(anchor["stale"] for anchor in mta_ok("bank", "show", "lamp-2", "--json").json()["anchors"])
    assert "mta bank show lamp-2 --bank-version 1 " in mta_ok(*str(commands[1]).split()[1:]).err
    assert "mta bank show lamp-2  " in mta_ok(*str(commands[2]).split()[1:]).err


def test_the_windows_pane_is_about_the_base_that_it_answers_with(two: Path) -> None:
    with Registry.open(two) as reg:
        ida = {base: load_user_detail(reg, "ida", "lamp-2", base) for base in ("tiny", "other", ModelOptions().base)}
    assert {base: one.status for base, one in ida.items()} == {
        "tiny": "adapted",
        "other": "fused",
        ModelOptions().base: "fused",
    }
    assert (ida["tiny"].base, ida["tiny"].other_bases) == ("tiny", ("other",))


def test_what_to_run_next_names_the_base(two: Path) -> None:
    said = mta_ok("user", "fuse", "kim", *CPU, "--base", "other").err
    assert "mta user adapt kim -t lamp-2 --base other" in said
    said = mta_ok("user", "adapt", "ida", *ADAPT, "--base", "tiny").err
    for command in ('compare ida "TEXT" -t lamp-2', "chat ida", "user export ida -t lamp-2"):
        assert f"mta {command} --base tiny" in said


def test_a_hint_names_the_base_where_another_could_be_meant(two: Path) -> None:
    with Registry.open(two) as reg:
        tiny_base = reg.banks.get("lamp-2", 1).base
        assert base_name_if_several(reg, tiny_base) == "tiny"
        assert base_name_if_several(reg, "sha256:new", "a model") == "a model"
