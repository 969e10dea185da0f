"""Settings are shown with where they come from, and changed in files that stay as they are otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shell import mta, mta_ok

OWN = "# mine\n[bank]\nrank = 4  # small\n\n[adapt]\nshots = 7\n"


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's settings file, and a store beside it."""
    path = tmp_path / "own.toml"
    path.write_text(OWN, encoding="utf-8")
    monkeypatch.setenv("MTA_CONFIG", str(path))
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "store"))
    mta_ok("init")
    return path


def test_a_list_says_where_each_value_comes_from(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_ADAPT_SHOTS", "3")
    rows = {row["setting"]: row for row in mta_ok("config", "list", "--json").json()}
    assert rows["bank.rank"] == {"setting": "bank.rank", "value": "4", "from": f"file {own_file}"}
    assert (rows["adapt.shots"]["value"], rows["adapt.shots"]["from"]) == ("3", "environment MTA_ADAPT_SHOTS")
    assert rows["adapt.alpha"]["from"] == "default"
    changed = mta_ok("config", "list", "--changed", "--json").json()
    assert [row["setting"] for row in changed] == ["bank.rank", "adapt.shots"]
    assert mta_ok("config", "get", "bank.rank").out == "4\n"


def test_a_change_leaves_comments_and_order(own_file: Path) -> None:
    mta_ok("config", "set", "bank.rank", "16")
    assert own_file.read_text() == OWN.replace("rank = 4", "rank = 16")
    mta_ok("config", "set", "serve.log_text", "yes")
    assert own_file.read_text().endswith("[serve]\nlog_text = true\n")
    mta_ok("config", "unset", "serve.log_text")
    mta_ok("config", "set", "bank.rank", "4")
    assert own_file.read_text().startswith(OWN)
    assert mta_ok("config", "get", "serve.log_text").out == "false\n"


def test_a_file_is_made_and_the_stores_own_file_wins(own_file: Path, tmp_path: Path) -> None:
    mta_ok("config", "set", "adapt.shots", "9", "--in-store")
    assert (tmp_path / "store" / "mta.toml").read_text() == "[adapt]\nshots = 9\n"
    assert mta_ok("config", "get", "adapt.shots").out == "9\n" and own_file.read_text() == OWN
    assert mta_ok("config", "path", "--json").json() == [
        {"file": str(own_file), "exists": True},
        {"file": str(tmp_path / "store" / "mta.toml"), "exists": True},
    ]


@pytest.mark.parametrize("name", ["", " ", "../../x", "\x1b[31m", "nothing", "smollm"])
@pytest.mark.parametrize("setting", ["models.base", "models.embedder"])
def test_a_model_that_no_job_could_find_is_no_setting(
    own_file: Path, setting: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = mta("config", "set", setting, name)
    assert ran.code == 3 and f"({setting})" in ran.err and own_file.read_text() == OWN
    monkeypatch.setenv(f"MTA_{setting.upper().replace('.', '_')}", name)
    if setting == "models.base":
        mta_ok("user", "add", "alice", "--yes")
        ran = mta("ask", "alice", "hi")
        assert ran.code == 3 and "(models.base)" in ran.err


def test_a_model_that_can_be_pulled_is_a_setting(own_file: Path, tiny_embedder_path: Path) -> None:
    for setting, name in (
        ("models.base", "qwen3-0.6b"),
        ("models.base", "hf:ORG/NAME"),
        ("models.base", "smollm2-135m-instruct"),
        ("models.embedder", "minilm-l6"),
    ):
        assert mta_ok("config", "set", setting, name)
    refused = mta("config", "set", "models.base", str(tiny_embedder_path))
    assert refused.code == 4 and "an embedder" in refused.err


def test_unsetting_what_is_not_set_changes_nothing(own_file: Path) -> None:
    assert "as before" in mta_ok("config", "unset", "bank.epochs").out
    assert "as before" in mta_ok("config", "set", "adapt.shots", "7").out
    assert own_file.read_text() == OWN


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["get", "bank.rnk"], 3, "did you mean bank.rank?"),
        (["set", "bank.rank", "many"], 2, "whole number"),
        (["set", "bank.rank", "0"], 2, "the least is 1"),
        (["set", "bank.placement", "middle"], 2, "choose one of all, upper, late"),
        (["set", "bank.rank"], 2, "Missing argument"),
        (["--store", "nowhere", "set", "bank.rank", "4", "--in-store"], 3, "no store"),
    ],
)
def test_what_cannot_be_set(own_file: Path, words: list[str], code: int, said: str) -> None:
    ran = mta("config", *words)
    assert (ran.code, ran.out) == (code, "") and said in ran.err
    assert own_file.read_text() == OWN


@pytest.mark.parametrize("where", [[], ["--in-store"]])
@pytest.mark.parametrize("wrong", ["bnk.rank", "bank.rnk", "rank"])
def test_what_is_no_setting_is_refused_and_can_be_taken_out(
    own_file: Path, tmp_path: Path, where: list[str], wrong: str
) -> None:
    file = tmp_path / "store" / "mta.toml" if where else own_file
    section, _, name = wrong.rpartition(".")
    file.write_text(f"[{section}]\n{name} = 4\n" if section else f"{name} = 4\n")
    ran = mta("config", "list")
    assert ran.code == 2 and "mta config unset SETTING removes it" in ran.err
    mta_ok("config", "unset", wrong, *where)
    mta_ok("config", "list")
    assert mta("config", "unset", wrong, *where).code == 3


def test_a_damaged_file_is_not_written(own_file: Path) -> None:
    own_file.write_text("[bank\nrank = 4")
    ran = mta("config", "set", "bank.rank", "8")
    assert ran.code == 4 and str(own_file) in ran.err and own_file.read_text() == "[bank\nrank = 4"


@pytest.mark.parametrize("content", ["bank = 4\n", "[[bank]]\nrank = 4\n"])
def test_a_section_that_is_none_is_named_and_can_be_taken_out(own_file: Path, content: str) -> None:
    own_file.write_text(content)
    ran = mta("config", "set", "bank.rank", "8")
    assert ran.code == 4 and "bank is a value and not a section" in ran.err and own_file.read_text() == content
    mta_ok("config", "unset", "bank")
    mta_ok("config", "set", "bank.rank", "8")


def test_a_link_to_the_file_stays_a_link(own_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link.toml"
    link.symlink_to(own_file)
    monkeypatch.setenv("MTA_CONFIG", str(link))
    mta_ok("config", "set", "bank.rank", "16")
    assert link.is_symlink() and "rank = 16" in own_file.read_text()
