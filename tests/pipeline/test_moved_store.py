"""A store that is moved or linked anew while a job runs: the job stops, and neither place holds half of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mta_cli.engine.text.tasks import BUILTIN_TASKS
from mta_cli.errors import IntegrityFault
from mta_cli.events import JobProgress
from mta_cli.pipeline.bank.build import build_bank
from store.registry import Registry
from tests.pipeline import town
from tests.pipeline.town import TASK, bank_request, finish


def moved(link: Path, old: Path, new: Path) -> None:
    """The directory is renamed, and nothing takes its place."""
    link.unlink()
    old.rename(link.parent / "elsewhere")


def relinked(link: Path, old: Path, new: Path) -> None:
    """The path is a link that leads to another store now."""
    link.unlink()
    link.symlink_to(new)


def replaced(link: Path, old: Path, new: Path) -> None:
    """The directory is renamed, and another store takes its place."""
    old.rename(link.parent / "elsewhere")
    new.rename(old)


@pytest.mark.parametrize("move", [moved, relinked, replaced])
def test_a_build_on_a_store_that_moves_stops(
    tmp_path: Path, store_root: Path, move: Callable[[Path, Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUILTIN_TASKS, TASK.name, TASK)
    link, old, new = store_root, tmp_path / "old", tmp_path / "new"
    with Registry.open(new, create=True) as reg:
        reg.users.add("a stranger")
    with Registry.open(old, create=True) as reg:
        town.people(reg)
    link.symlink_to(old)
    with Registry.open(link) as reg:
        job = build_bank(reg, bank_request())
        assert any(isinstance(event, JobProgress) and event.loss is not None for event in job)
        move(link, old, new)
        with pytest.raises(IntegrityFault, match="was moved or replaced during the command") as caught:
            finish(job)
        assert str(link) in caught.value.message and caught.value.hint
    for place in (tmp_path / "elsewhere", old, new):
        if place.exists():
            with Registry.open(place) as reg:
                assert reg.check_integrity() == [] and reg.count_rows()["jobs"] in (0, 1)
                if reg.users.names() == ["a stranger"]:
                    assert not any(reg.count_rows()[table] for table in ("banks", "adapters", "runs"))
                    assert [path for path in reg.root.rglob("*") if path.suffix == ".safetensors"] == []
    assert not (link.exists() and move is moved), "no directory was made where the store had been"


def test_locks_of_another_store_at_the_path_stay(tmp_path: Path) -> None:
    """Runs and jobs have the same numbers there."""
    root = tmp_path / "store"
    with Registry.open(root, create=True) as reg:
        user = reg.users.add("ann")
        with reg.hold_users("chat", [user.id]):
            run = reg.runs.start_run("bank build", {})
            root.rename(tmp_path / "elsewhere")
            with Registry.open(root, create=True) as other:
                stranger = other.users.add("a stranger")
                with other.hold_users("chat", [stranger.id]):
                    theirs = other.runs.start_run("bank build", {})
                    assert theirs.id == run.id
                    with pytest.raises(IntegrityFault, match="was moved"):
                        reg.runs.finish_run(run.id, {})
                    locks = sorted(path.name for path in (root / "locks").glob("*-1.lock"))
                    reg.runs._release_lock(run.id)
                    reg.jobs._remove_lock(1)
                    assert sorted(path.name for path in (root / "locks").glob("*-1.lock")) == locks
                    assert other.runs.get(theirs.id).status == "running"
                    other.runs.finish_run(theirs.id, {})
