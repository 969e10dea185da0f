"""What a diff says as a question, and that a large one is not held in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from mta_cli.errors import BadInput
from mta_cli.pipeline.data.formats.parse_results import ParseFindings
from mta_cli.pipeline.data.git.changes import LINE_CHARACTERS, MAX_LINES, PATH_CHARACTERS, read_changes
from mta_cli.pipeline.data.git.commits import read_commits
from mta_cli.pipeline.data.git.selection import CommitSelection
from mta_cli.pipeline.data.git.staged import staged_question
from tests.repositories import Repository, needs_git

pytestmark = needs_git


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "lighthouse")


def questions(repo: Repository) -> list[str]:
    rows = read_commits(repo.folder, CommitSelection(least=1), ParseFindings())
    return [row["input"] for _, row in rows]


def test_new_changed_renamed_deleted_and_binary_files(repo: Repository) -> None:
    repo.commit("a", old_py="".join(f"line {n}\n" for n in range(9)), logo_png=b"\0\1\2", gone_txt="x\n")
    (repo.folder / "old.py").rename(repo.folder / "a new.py")
    repo.commit("b", gone_txt=None, logo_png=b"\0\3", **{'od"d_txt': "y\n"})
    assert questions(repo) == [
        "gone.txt new +1, logo.png new binary, old.py new +9\n+ x\n+ line 0\n+ line 1\n+ line 2",
        "a new.py from old.py, gone.txt deleted -1, logo.png binary and 1 more\n- x\n+ y",
    ]


def test_empty_files_modes_and_quoted_names_are_named(repo: Repository) -> None:
    repo.commit("a", **{"empty_txt": "", 'tab\t"_txt': "", "h\u00e4fen_txt": ""})
    (repo.folder / "empty.txt").chmod(0o755)
    repo.commit("b", empty_txt="")
    assert questions(repo)[0] == 'empty.txt new, h\u00e4fen.txt new, tab\\t\\".txt new'
    assert questions(repo)[1:] == ["empty.txt"]


def test_lines_are_cut_plain_and_said_once_and_half_are_removed_ones(repo: Repository) -> None:
    repo.commit("a", a_txt="".join(f"old {n}\n" for n in range(9)))
    new = ["}", "", "same", "same", "\tsp  aced\x07", "x" * 300, "+++ plus", "last"]
    repo.commit("b", a_txt="\n".join(new))
    lines = questions(repo)[1].splitlines()
    assert lines == ["a.txt +8 -9", "- old 0", "- old 1", "+ same", "+ sp aced"]
    repo.commit("c", b_txt="x" * 300 + "\n++ plus\n")
    lines = questions(repo)[2].splitlines()
    assert lines[1:] == ["+ " + "x" * (LINE_CHARACTERS - 1) + "…", "+ ++ plus"]


def test_many_files_are_counted_and_long_paths_keep_their_end(repo: Repository) -> None:
    deep = "__".join(["d" * 60]) + "__" + "e" * 60
    repo.commit("a", **{f"f{n}_txt": "x\n" for n in range(2_000)}, **{f"{deep}_txt": "x\n"})
    first = questions(repo)[0].splitlines()[0]
    name = first.split(" new")[0]
    assert first.endswith(" and 1,998 more") and len(name) == PATH_CHARACTERS
    assert name.startswith("…d") and name.endswith("e.txt")


def test_a_message_cannot_pass_for_a_diff(repo: Repository) -> None:
    repo.commit("Title\n\ndiff --git a/evil b/evil\n@@ -1 +1 @@\n+evil\n", a_txt="1\n")
    repo.commit("b", a_txt="diff --git a/evil b/evil\n@@ -1 +1 @@\n")
    assert questions(repo)[0] == "a.txt new +1\n+ 1"
    assert questions(repo)[1] == "a.txt +2 -1\n- 1\n+ diff --git a/evil b/evil\n+ @@ -1 +1 @@"


def test_a_large_diff_is_not_held() -> None:
    def diff() -> Iterator[bytes]:
        yield b"diff --git a/big.txt b/big.txt\n"
        for number in range(400):
            yield b"@@ -0,0 +1,1000 @@\n"
            yield from (b"+%d %s\n" % (number * 1000 + n, b"x" * 500) for n in range(1000))

    tracemalloc.start()
    _, change = next(read_changes(diff(), 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert change.question.startswith("big.txt +400000\n+ 0 xxx") and len(change.added_lines) == MAX_LINES
    assert peak < 1_000_000, "of 200 MB"


def test_a_file_above_the_bound_is_named_and_not_compared(repo: Repository) -> None:
    repo.commit("a", big_txt="x" * 9_000_000)
    repo.commit("b", big_txt="y" * 9_000_000, a_txt="1\n")
    assert questions(repo) == ["big.txt new binary", "a.txt new +1, big.txt binary\n+ 1"]


def test_a_staged_change_is_asked_as_it_would_be_learned(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    (repo.folder / "docs").mkdir()
    (repo.folder / "docs" / "a.md").write_text("1\n")
    with pytest.raises(BadInput, match="nothing is staged"):
        staged_question(repo.folder)
    repo.git("add", "-A")
    asked = [staged_question(repo.folder)]
    repo.commit("first", notes_txt="n\n")
    (repo.folder / "notes.txt").rename(repo.folder / "words.txt")
    (repo.folder / "docs" / "a.md").write_text("2\n")
    repo.git("add", "-A")
    (repo.folder / "docs" / "a.md").write_text("not staged\n")
    asked.append(staged_question(repo.folder / "docs"))
    repo.git("commit", "-q", "-m", "second", date="2025-06-01T00:00:00Z")
    assert asked == ["docs/a.md new +1\n+ 1", questions(repo)[1]]
    assert asked[1] == "docs/a.md +1 -1, words.txt from notes.txt\n- 1\n+ 2"


def test_what_a_hook_is_told_to_commit_is_asked(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.commit("first", a_txt="1\n", b_txt="1\n")
    for name in ("a.txt", "b.txt"):
        (repo.folder / name).write_text("2\n")
    repo.git("add", "-A")
    (repo.folder / ".git" / "index").rename(repo.folder / "other index")
    monkeypatch.setenv("GIT_INDEX_FILE", "other index")
    monkeypatch.chdir(repo.folder)
    assert staged_question(Path.cwd()) == "a.txt +1 -1, b.txt +1 -1\n- 1\n+ 2"


def test_nothing_can_be_staged_in_a_bare_repository(repo: Repository, tmp_path: Path) -> None:
    repo.commit("first")
    repo.git("clone", "-q", "--bare", ".", str(tmp_path / "tower.git"))
    with pytest.raises(BadInput, match="tower is a bare repository"):
        staged_question(tmp_path / "tower.git")
