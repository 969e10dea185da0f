"""Importing a git repository: whose commits, which of them, and what stays when it is imported again."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, Flag, NotFound, UsageError
from mta_cli.events import JobPlan
from mta_cli.pipeline.data.git.program import Git
from mta_cli.pipeline.data.git.selection import CommitSelection
from mta_cli.pipeline.data.import_source import ImportSource
from mta_cli.pipeline.users.import_file import import_source
from store.registry import Registry
from tests.pipeline.histories import run
from tests.repositories import ADA, BOB, Repository, needs_git

pytestmark = needs_git


@pytest.fixture
def reg(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "lighthouse")


def take(
    reg: Registry, repo: Repository | Path, task: str | None = None, hold_out: int = 0, **selected: Any
) -> tuple[Any, list[str]]:
    """Import a repository, by default with authors of a single commit."""
    folder = repo.folder if isinstance(repo, Repository) else repo
    selection = CommitSelection(**{"least": 1} | selected)
    return run(import_source(reg, ImportSource("git", folder, task, hold_out=hold_out, commits=selection)))


def items(reg: Registry, user: str, task: str = "commit") -> list[tuple[str, str]]:
    return [(item.input, item.output) for item in reg.items.recent_items(reg.users.get(user).id, task)]


def outputs(reg: Registry, user: str, task: str = "commit") -> list[str]:
    return [output for _, output in items(reg, user, task)]


def test_an_author_is_a_user_and_a_change_is_asked_for_its_message(reg: Registry, repo: Repository) -> None:
    repo.commit("Light the lamp", lamp_py="oil = 1\nwick = 2\n", docs__lamp_md="# Lamp\n")
    repo.commit(
        "Trim the wick\n\nIt smoked.\n\nSigned-off-by: Ada Gray <ada@example.org>\n", lamp_py="oil = 1\nwick = 3\n"
    )
    repo.commit("Drop the page (#12)", BOB, docs__lamp_md=None)
    result, notes = take(reg, repo)
    assert (result["task"], result["format"], result["users"], result["items_added"]) == ("commit", "git", 2, 3)
    assert items(reg, "Ada Gray") == [
        ("docs/lamp.md new +1, lamp.py new +2\n+ # Lamp\n+ oil = 1\n+ wick = 2", "Light the lamp"),
        ("lamp.py +1 -1\n- wick = 2\n+ wick = 3", "Trim the wick"),
    ]
    assert items(reg, "Bob Hill") == [("docs/lamp.md deleted -1\n- # Lamp", "Drop the page")]
    first = reg.items.recent_items(reg.users.get("Ada Gray").id, "commit")[0]
    assert first.time == "2025-01-02T09:00:00", "the author's date in UTC"
    assert notes[-1].startswith("the users are the authors of a repository: new users may not be anchors unless")
    assert reg.tasks.get("commit") is not None


def test_the_group_is_the_repository(reg: Registry, repo: Repository) -> None:
    repo.commits(1)
    take(reg, repo)
    assert reg.users.groups("commit") == {reg.users.get("Ada Gray").id: "lighthouse"}


def test_whole_messages_are_a_task_of_their_own(reg: Registry, repo: Repository) -> None:
    repo.commit("Trim the wick\n\nIt smoked.\n\nA lot.\n\nCo-authored-by: Bob <bob@example.org>\nChange-Id: I12\n")
    take(reg, repo)
    result, _ = take(reg, repo, body=True)
    assert result["task"] == "commit-body"
    assert outputs(reg, "Ada Gray", "commit-body") == ["Trim the wick\n\nIt smoked.\n\nA lot."]
    assert outputs(reg, "Ada Gray") == ["Trim the wick"]


def test_a_mailmap_is_honoured(reg: Registry, repo: Repository) -> None:
    repo.commits(4, ("agray", "agray@old.example.org"))
    repo.commits(1, BOB)
    repo.commit("Add a mailmap", BOB, x__y_z="")
    (repo.folder / ".mailmap").write_text("Ada Gray <ada@example.org> <agray@old.example.org>\n")
    take(reg, repo)
    assert reg.users.names() == ["Ada Gray", "Bob Hill"]


@pytest.mark.parametrize(
    ("second", "joined"),
    [
        (("Ada Gray", "ada@elsewhere.example.org"), True),
        (("ADA GRAY", "ada@elsewhere.example.org"), True),
        (("agray", "ADA@example.org"), True),
        (("Ida Gray", "ida@example.org"), False),
    ],
)
def test_the_addresses_of_one_person_are_joined(
    reg: Registry, repo: Repository, second: tuple[str, str], joined: bool
) -> None:
    repo.commits(3)
    repo.commits(5, second)
    take(reg, repo)
    assert reg.users.names() == (["Ada Gray"] if joined else ["Ada Gray", second[0]])


def test_names_and_addresses_of_nobody_join_nobody(reg: Registry, repo: Repository) -> None:
    repo.commits(3, ("root", "ada@example.org"))
    repo.commits(1, ("Ada Gray", "ada@example.org"))
    repo.commits(2, ("root", "bob@example.org"))
    repo.commits(1, ("Cy Ives", "root@localhost"))
    repo.commits(1, ("Di Jay", "root@localhost"))
    for number in range(6):
        repo.commits(1, (f"Team {number}", "team@example.org"))
    take(reg, repo)
    teams = [f"Team {number}" for number in range(6)]
    assert set(reg.users.names()) == {"Ada Gray", "bob@example.org", "Cy Ives", "Di Jay", *teams}


def test_a_first_slip_is_not_the_name_and_a_later_name_does_not_replace_it(reg: Registry, repo: Repository) -> None:
    repo.commits(1, ("agray", "ada@example.org"))
    repo.commits(3)
    take(reg, repo)
    repo.commits(9, ("Ada Gray-Ives", "ada@example.org"), "more")
    result, _ = take(reg, repo)
    assert reg.users.names() == ["Ada Gray"] and result["items_unchanged"] == 4


def test_bots_merges_reverts_and_empty_messages_are_left_out_and_counted(reg: Registry, repo: Repository) -> None:
    repo.commit("Light the lamp")
    repo.git("checkout", "-q", "-b", "side")
    repo.commit("A page", side_txt="1\n")
    repo.git("checkout", "-q", "main")
    repo.commit("A harbour", harbour_txt="1\n")
    repo.git("merge", "-q", "--no-ff", "-m", "Merge side", "side", date="2025-03-01T00:00:00Z")
    repo.commit('Revert "A harbour"', harbour_txt=None)
    repo.commit("")
    repo.commit("Signed-off-by: Ada Gray <ada@example.org>")
    repo.commit("Nothing", notes_txt=repo.read("notes.txt"))
    for bot in (
        ("dependabot[bot]", "49699333+dependabot[bot]@users.noreply.github.com"),
        ("renovate", "bot@example.org"),
        ("GitHub", "noreply@github.com"),
        ("lamp-bot", "lamp@example.org"),
    ):
        repo.commits(1, bot)
    repo.commits(1, ("Ines Abbot", "abbot@example.org"))
    _, notes = take(reg, repo)
    assert outputs(reg, "Ada Gray") == ["Light the lamp", "A page", "A harbour"]
    assert reg.users.names() == ["Ada Gray", "Ines Abbot"]
    left_out = {note.removeprefix("left out, ") for note in notes if note.startswith("left out")}
    counts = {"merges: 1", "reverts: 1", "commits of bots: 4", "commits without a message: 2"}
    assert left_out == counts | {"commits without a changed file: 1"}


def test_least_leaves_out_authors_with_fewer_and_says_how_many(reg: Registry, repo: Repository) -> None:
    repo.commits(10)
    repo.commits(9, BOB)
    repo.commits(1, ("Cy Ives", "cy@example.org"))
    _, notes = take(reg, repo, least=CommitSelection().least)
    assert reg.users.names() == ["Ada Gray"]
    assert "left out, commits of 2 authors with fewer than 10: 10" in notes
    with pytest.raises(
        BadInput, match=r"none of the 3 authors of lighthouse has 11 usable commits; the largest number is 10"
    ) as error:
        take(reg, repo, least=11)
    assert error.value.hint == ("lower the limit: ", Flag("least", 10))


def test_since_is_the_authors_date(reg: Registry, repo: Repository) -> None:
    repo.commit("Old", date="2024-05-01T00:00:00Z")
    repo.commit("New", date="2025-05-01T00:00:00Z")
    repo.commit("Picked from before", date="2024-06-01T00:00:00Z")
    _, notes = take(reg, repo, since="2025")
    assert outputs(reg, "Ada Gray") == ["New"] and "left out, commits before the date: 2" in notes
    with pytest.raises(BadInput, match="lighthouse has no usable commit"):
        take(reg, repo, since="2026-01")
    with pytest.raises(UsageError, match="--since: 'last week' is not a date"):
        take(reg, repo, since="last week")


def test_paths_choose_commits_and_the_question_stays_the_same(reg: Registry, repo: Repository) -> None:
    repo.commit("Both", docs__a_md="1\n", src__a_py="1\n")
    repo.commit("Code", src__a_py="2\n")
    take(reg, repo, paths=("docs",))
    assert items(reg, "Ada Gray") == [("docs/a.md new +1, src/a.py new +1\n+ 1", "Both")]
    result, _ = take(reg, repo)
    assert (result["items_added"], result["items_unchanged"]) == (1, 1)


def test_pseudonyms_stay_when_the_history_grows(reg: Registry, repo: Repository) -> None:
    repo.commits(2)
    repo.commits(2, BOB)
    take(reg, repo, pseudonyms=True)
    names = reg.users.names()
    assert len(names) == 2 and all(name.startswith("author-") and len(name) == 15 for name in names)
    repo.commits(3, ("Ada Gray", "ada@elsewhere.example.org"), "more")
    result, _ = take(reg, repo, pseudonyms=True)
    assert reg.users.names() == names and (result["items_added"], result["items_unchanged"]) == (3, 4)


def test_a_second_import_adds_only_new_commits(reg: Registry, repo: Repository) -> None:
    repo.commits(6)
    result, _ = take(reg, repo, hold_out=2)
    assert (result["items_added"], result["queries_added"]) == (4, 2)
    result, _ = take(reg, repo, hold_out=2)
    assert (result["items_added"], result["items_unchanged"], result["queries_unchanged"]) == (0, 4, 2)
    repo.commit("Newest")
    result, _ = take(reg, repo)
    assert (result["items_added"], result["items_unchanged"], result["queries_unchanged"]) == (1, 4, 2)
    assert outputs(reg, "Ada Gray")[-1] == "Newest"


def test_a_commit_that_was_amended_or_rebased_is_the_same_one(reg: Registry, repo: Repository) -> None:
    repo.commits(2)
    repo.commit("Trim", wick_txt="1\n", date="2025-04-01T00:00:00Z")
    take(reg, repo)
    before = items(reg, "Ada Gray")
    (repo.folder / "wick.txt").write_text("2\n")
    repo.git("commit", "-q", "-a", "--amend", "--no-edit")
    result, _ = take(reg, repo)
    assert (result["items_added"], result["items_unchanged"]) == (0, 3)
    assert items(reg, "Ada Gray") == before, "what is stored stays"


def test_a_picked_commit_counts_once(reg: Registry, repo: Repository) -> None:
    repo.commits(1)
    repo.git("checkout", "-q", "-b", "side")
    picked = repo.commit("Trim", wick_txt="1\n")
    repo.git("checkout", "-q", "main")
    repo.commit("Page", page_txt="1\n")
    repo.git("cherry-pick", picked)
    repo.git("merge", "-q", "--no-ff", "-m", "Merge", "side")
    _, notes = take(reg, repo)
    assert sorted(outputs(reg, "Ada Gray")) == ["Page", "Trim", "change 0 of Ada Gray"]
    assert "left out, commits that occur twice: 1" in notes


def test_bare_repositories_inner_folders_and_work_trees_are_read(
    reg: Registry, repo: Repository, tmp_path: Path
) -> None:
    repo.commit("Light the lamp", docs__lamp_md="1\n")
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "tower.git"))
    repo.git("worktree", "add", "-q", "-b", "other", str(tmp_path / "tree"))
    for folder in (tmp_path / "tower.git", repo.folder / "docs", tmp_path / "tree"):
        result, _ = take(reg, folder)
        assert result["items_added"] + result["items_unchanged"] == 1
    assert Git(tmp_path / "tower.git").name == "tower"


def test_the_top_of_a_repository_is_recognised_and_a_named_format_wins(reg: Registry, repo: Repository) -> None:
    repo.commit("Light the lamp", table_csv="user,input,output\nann,i,o\n")
    selection = CommitSelection(least=1)
    result, _ = run(import_source(reg, ImportSource(None, repo.folder, commits=selection)))
    assert result["format"] == "git"
    result, _ = run(import_source(reg, ImportSource("csv", repo.folder)))
    assert result["format"] == "csv" and "ann" in reg.users.names()


def test_the_edge_of_a_shallow_clone_is_left_out(reg: Registry, repo: Repository, tmp_path: Path) -> None:
    repo.commits(4)
    repo.git("clone", "-q", "--depth", "2", f"file://{repo.folder}", str(tmp_path / "shallow"))
    _, notes = take(reg, tmp_path / "shallow")
    assert outputs(reg, "Ada Gray") == ["change 3 of Ada Gray"]
    assert "left out, first commits of a shallow clone, whose changes are unknown: 1" in notes


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("../../etc", "../../etc"),
        ("all", "all"),
        ("base", "odd@example.org"),
        ("--json", "json"),
        ("Ada \x1b[2J Gray", "Ada [2J Gray"),
        ("Ada\u202eyarG", "Ada yarG"),
        ("\u3164", "odd@example.org"),
        ("x" * 500, "x" * 200),
        ("Müller", "Müller"),
    ],
)
def test_hostile_names_of_authors_become_names_of_users(reg: Registry, repo: Repository, name: str, user: str) -> None:
    repo.commits(1)
    tree, parent = repo.git("rev-parse", "HEAD^{tree}"), repo.git("rev-parse", "HEAD")
    (repo.folder / "notes.txt").write_text("odd\n")
    repo.git("add", "-A")
    tree = repo.git("write-tree")
    raw = f"tree {tree}\nparent {parent}\nauthor {name} <odd@example.org> 1740000000 +0000\n"
    raw += "committer A <a@example.org> 1740000000 +0000\n\nAn odd one\n"
    made = repo.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=raw.encode())
    repo.git("update-ref", "refs/heads/main", made)
    take(reg, repo)
    assert sorted(reg.users.names()) == sorted(["Ada Gray", user])


def test_bytes_that_are_no_text_are_replaced(reg: Registry, repo: Repository) -> None:
    repo.commit(b"Caf\xe9 \x1b[31mred\n", page_txt=b"caf\xe9\tcr\xc3\xa8me\n")
    repo.commits(1)
    take(reg, repo)
    question, message = items(reg, "Ada Gray")[0]
    assert question.endswith("+ caf\ufffd crème") and message.endswith("[31mred") and "\x1b" not in message


def test_an_authors_line_that_git_cannot_read_is_left_out(reg: Registry, repo: Repository) -> None:
    repo.commits(1)
    raw = f"tree {repo.git('rev-parse', 'HEAD^{tree}')}\nauthor A\0B <x@example.org> 1740000000 +0000\n"
    raw += "committer A <a@example.org> 1740000000 +0000\n\nodd\n"
    made = repo.git("hash-object", "-t", "commit", "-w", "--literally", "--stdin", stdin=raw.encode())
    repo.git("update-ref", "refs/heads/main", made)
    with pytest.raises(BadInput, match="lighthouse has no usable commit"):
        take(reg, repo)


def test_nothing_of_the_repository_is_run(reg: Registry, repo: Repository, tmp_path: Path) -> None:
    repo.commit("Light", lamp_txt="1\n", x__y_z="1\n")
    (repo.folder / ".gitattributes").write_text("*.txt diff=evil filter=evil\n")
    repo.commit("Attributes", lamp_txt="2\n")
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\ncat\n")
    trap.chmod(trap.stat().st_mode | stat.S_IXUSR)
    for key in ("diff.external", "diff.evil.textconv", "diff.evil.command", "filter.evil.clean", "core.fsmonitor"):
        repo.git("config", key, str(trap))
    repo.git("config", "core.pager", str(trap))
    repo.git("config", "diff.noprefix", "true")
    repo.git("config", "diff.context", "9")
    repo.git("config", "color.ui", "always")
    (repo.folder / "lamp.txt").write_text("3\n")
    (tmp_path / "sprung").unlink(missing_ok=True)
    take(reg, repo)
    assert not (tmp_path / "sprung").exists()
    assert items(reg, "Ada Gray")[1][0].startswith(".gitattributes new +1, lamp.txt +1 -1\n- 1\n+ ")


def test_variables_of_another_repository_are_not_followed(
    reg: Registry, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commits(1)
    other = Repository(tmp_path / "other")
    other.commits(1, BOB)
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    take(reg, repo)
    assert reg.users.names() == ["Ada Gray"]


def test_what_cannot_be_read_is_one_line(reg: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "plain").mkdir()
    empty = Repository(tmp_path / "empty")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    for path, error, said in (
        (tmp_path / "gone", NotFound, "There is no folder .*gone"),
        (tmp_path / "file", BadInput, "is a file, not a git repository"),
        (tmp_path / "plain", BadInput, "plain' is not a git repository"),
        (empty.folder, BadInput, "empty has no commits yet"),
    ):
        with pytest.raises(error, match=said):
            take(reg, path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="The program git was not found"):
        take(reg, empty)


def test_a_repository_of_another_owner_is_gits_own_line(
    reg: Registry, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commits(1)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    with pytest.raises(BadInput, match="detected dubious ownership in repository") as error:
        take(reg, repo)
    assert "safe.directory" in str(error.value.hint)


def test_flags_of_tables_and_of_repositories_do_not_mix(tmp_path: Path, repo: Repository, reg: Registry) -> None:
    with pytest.raises(UsageError, match="--me applies to files of one user, not to git"):
        ImportSource(None, repo.folder, user="ann").require_consistent()
    with pytest.raises(UsageError, match="--skip-faulty applies to files of rows or messages, not to git"):
        ImportSource("git", repo.folder, skip_faulty=True).require_consistent()
    (tmp_path / "table.csv").write_text("user,input,output\nann,i,o\n")
    for selection, flag in ((CommitSelection(body=True), "--body"), (CommitSelection(since="2025"), "--since")):
        with pytest.raises(UsageError, match=f"{flag} applies to git repositories, not to csv"):
            run(import_source(reg, ImportSource(None, tmp_path / "table.csv", commits=selection)))


@pytest.mark.parametrize(
    ("can_anchor", "answer", "may"),
    [(None, None, False), (None, True, True), (None, False, False), (True, None, True), (False, None, False)],
)
def test_authors_are_anchors_only_where_somebody_says_so(
    reg: Registry, repo: Repository, can_anchor: bool | None, answer: bool | None, may: bool
) -> None:
    repo.commits(1)
    source = ImportSource("git", repo.folder, commits=CommitSelection(least=1))
    ask = None if answer is None else lambda users: answer
    run(import_source(reg, source, can_anchor=can_anchor, ask=ask))
    assert reg.users.get("Ada Gray").can_anchor is may


def test_the_plan_of_a_dry_run_stores_nothing(reg: Registry, repo: Repository) -> None:
    repo.commits(2)
    source = ImportSource(None, repo.folder, commits=CommitSelection(least=1))
    events = list(import_source(reg, source, dry_run=True))
    lines = {line.name: line.value for event in events if isinstance(event, JobPlan) for line in event.lines}
    assert lines["format"] == "git" and lines["may be anchors"] == "new users may not"
    assert reg.users.names() == [] and reg.tasks.get("commit") is None


def test_a_task_of_that_name_in_the_store_is_kept(reg: Registry, repo: Repository) -> None:
    own = 'name = "commit"\nkind = "text"\ndescription = "mine"\nprompt = "{input}"\nitem = "{output}"\n'
    reg.tasks.save_task("commit", own)
    repo.commits(1)
    take(reg, repo)
    assert reg.tasks.get("commit") == own
    assert ADA[0] in reg.users.names()
