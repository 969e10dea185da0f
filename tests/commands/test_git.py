"""Git repositories from the outside: consent at a terminal, the staged change, and the hook of the docs."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.pipeline.chat import answer
from store.registry import Registry
from tests.pipeline.world import World, make_world
from tests.pseudo_terminal import Terminal
from tests.repositories import ADA, BOB, Repository, needs_git
from tests.shell import mta, mta_ok

pytestmark = needs_git

PAGE = Path(__file__).parents[2] / "docs" / "git.md"
FAST = ("--max-tokens", "8", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository, in which commands run."""
    made = Repository(tmp_path / "lighthouse")
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def store(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTA_STORE", str(store_root))
    Registry.open(store_root, create=True).close()
    return store_root


def may(store: Path) -> dict[str, bool]:
    with Registry.open(store) as reg:
        return {each.name: each.can_anchor for each in reg.user_table.summaries()}


@pytest.mark.parametrize(("typed", "agreed"), [("\r", False), ("n\r", False), ("y\r", True)])
def test_a_terminal_is_asked_about_the_authors_and_enter_means_no(
    store: Path, repo: Repository, typed: str, agreed: bool
) -> None:
    repo.commits(2)
    repo.commits(2, BOB)
    with Terminal(["data", "import", ".", "--least", "2"], columns=120) as terminal:
        terminal.until("May the 2 new users be anchors, who help to serve others? [y/N]")
        terminal.type(typed)
        assert terminal.ended() == 0
    assert may(store) == {ADA[0]: agreed, BOB[0]: agreed}


def test_yes_is_no_consent_of_the_authors_and_a_flag_is(store: Path, repo: Repository) -> None:
    repo.commits(2)
    said = mta_ok("data", "import", "git", ".", "--least", "1", "--yes")
    assert "new users may not be anchors unless you add --can-anchor" in said.err and may(store) == {ADA[0]: False}
    mta_ok("data", "import", "git", ".", "--least", "1", "--can-anchor")
    assert may(store) == {ADA[0]: True}


def test_every_flag_reaches_the_import(store: Path, repo: Repository) -> None:
    repo.commit("Old", date="2024-01-01T00:00:00Z")
    repo.commit("Here\n\nAnd why.", src__a_py="1\n", date="2025-02-01T00:00:00Z")
    repo.commit("There", docs__a_md="1\n", date="2025-02-02T00:00:00Z")
    flags = ("--since", "2025", "--paths", "src", "--least", "1", "--body", "--pseudonyms", "--hold-out", "0")
    told = mta_ok("data", "import", ".", *flags, "--json").json()
    assert (told["format"], told["task"], told["users"], told["items_added"]) == ("git", "commit-body", 1, 1)
    assert next(iter(may(store))).startswith("author-")


def test_quick_without_a_word_on_consent_stores_nothing(store_root: Path, repo: Repository) -> None:
    repo.commits(12)
    said = mta("--store", store_root, "quick", ".", "--yes")
    assert said.code == 2 and "the users of lighthouse are the authors of a repository" in said.err
    assert "--can-anchor" in said.err and may(store_root) == {}


@pytest.fixture
def world(store: Path) -> Iterator[World]:
    store.joinpath("registry.db").unlink()
    made = make_world(store)
    yield made
    made.reg.close()


def test_the_staged_change_is_the_question(world: World, repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.commit("Light", lamp_py="oil = 1\n")
    (repo.folder / "lamp.py").write_text("oil = 2\n")
    repo.git("add", "-A")
    real, asked = answer.answer_question, list[tuple[str | None, str]]()

    def noted(reg: Any, model: Any, user: str | None, text: str, asking: Any) -> Any:
        asked.append((user, text))
        return real(reg, model, user, text, asking)

    monkeypatch.setattr(answer, "answer_question", noted)
    mta_ok("ask", "alice", "-t", "free", "--staged", *FAST)
    assert asked == [("alice", "lamp.py +1 -1\n- oil = 1\n+ oil = 2")]


def test_what_cannot_be_asked_is_one_line(store: Path, repo: Repository, tmp_path: Path) -> None:
    repo.commit("Light")
    for words, code, line in (
        (("ask", "alice", "--staged"), 4, "nothing is staged, so there is nothing to ask about"),
        (("ask", "alice", "text", "--staged"), 2, "--staged and a text are two different questions"),
    ):
        said = mta(*words)
        assert said.code == code and line in said.err and said.out == "" and len(said.err.splitlines()) <= 2


def test_a_folder_without_a_repository_is_one_line(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    said = mta("ask", "alice", "--staged")
    assert said.code == 4 and "is not a git repository" in said.err


@pytest.fixture
def hooked(repo: Repository, tmp_path: Path) -> Path:
    """The folder of a stand-in for mta, which the hook of the page runs."""
    script = re.search(r"^```sh\n(#!/bin/sh\n.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert script is not None
    _write_program(repo.folder / ".git" / "hooks" / "prepare-commit-msg", script[1])
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def _write_program(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _commit(repo: Repository, programs: Path, *words: str) -> str:
    """Commit as somebody does who leaves the proposed message as it is; returns the message."""
    (repo.folder / "notes.txt").write_text(repo.read("notes.txt") + "more\n")
    repo.git("config", "user.name", ADA[0])
    repo.git("config", "user.email", ADA[1])
    variables = os.environ | {"GIT_EDITOR": "true", "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["git", "add", "-A"], cwd=repo.folder, check=True)
    done = subprocess.run(["git", "commit", "-q", *words], cwd=repo.folder, env=variables, capture_output=True)
    return repo.git("log", "-1", "--format=%B") if done.returncode == 0 else "(no commit)"


def test_the_hook_proposes_the_answer(repo: Repository, hooked: Path) -> None:
    _write_program(hooked / "mta", f'#!/bin/sh\necho "$@" > {hooked}/asked\necho "Trim the wick"\n')
    assert _commit(repo, hooked) == "Trim the wick"
    assert (hooked / "asked").read_text().strip() == f"--quiet ask --user {ADA[0]} -t commit --staged"
    assert _commit(repo, hooked, "-m", "My own") == "My own"


@pytest.mark.parametrize("body", ["exit 4", "echo half; exit 1", "", "echo"])
def test_the_commit_goes_on_where_the_program_fails(repo: Repository, hooked: Path, body: str) -> None:
    _write_program(hooked / "mta", f"#!/bin/sh\n{body}\n")
    assert _commit(repo, hooked, "-m", "My own") == "My own"
    template = repo.folder / ".git" / "COMMIT_EDITMSG"
    assert _commit(repo, hooked) == "(no commit)", "an empty message, which git refuses as ever"
    assert "half" not in template.read_text()
