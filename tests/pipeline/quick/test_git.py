"""From a git repository to a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.errors import Flag, UsageError
from mta_cli.pipeline.data.git.selection import CommitSelection
from mta_cli.pipeline.quick import run as quick
from mta_cli.pipeline.quick.run import run_quick
from store.registry import Registry
from tests.pipeline.quick.test_run import finish, parts, request
from tests.repositories import Repository, needs_git

pytestmark = needs_git


def test_a_repository_becomes_a_verdict_where_its_authors_may_be_anchors(
    store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "measure_row_rate", lambda *_: 5.0)
    with Registry.open(store_root, create=True) as reg:
        check_quick(reg, tmp_path)


def check_quick(reg: Registry, tmp_path: Path) -> None:
    repo = Repository(tmp_path / "lighthouse")
    for number in range(5):
        repo.commits(10, (f"Author {number}", f"a{number}@example.org"))
    repo.commits(2, ("Guest", "guest@example.org"))
    asked = request(repo.folder, hold_out=0, commits=CommitSelection())
    with pytest.raises(UsageError, match="are the authors of a repository, so no bank is built") as refused:
        finish(run_quick(reg, asked))
    assert Flag("can_anchor") in parts(refused.value)
    with pytest.raises(UsageError, match="nothing was stored: a bank needs users who may be anchors"):
        finish(run_quick(reg, asked, ask=lambda users: False))
    assert reg.users.names() == []
    counts: list[int] = []
    result, _ = finish(run_quick(reg, asked, ask=lambda users: counts.append(users) or True))
    assert counts == [5], "once, about the authors that are read"
    assert (result["task"], result["kind"], result["users"]) == ("commit", "text", 5)
    assert (result["items"], result["queries"]) == (40, 10)
    assert "My commit message:" in result["prompts"][0]["prompt"] and result["verdict"]
    again, _ = finish(run_quick(reg, asked))
    assert again["ladder"] == result["ladder"], "a script needs no word, because some of them may"
