"""Users are compared by the embedder that the bank was built with, whatever the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from mta_cli.pipeline.models.pull import register_folder
from store.registry import Registry
from tests import tiny
from tests.commands.test_bank import QUICK, refused
from tests.pipeline import town
from tests.shell import mta, mta_ok

TASK = ("--task", "lamp-2")
CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture
def store(store_root: Path, tmp_path: Path) -> Path:
    """A store with the people of `town`, a bank by `tiny-embedder`, and another embedder of the same width."""
    with Registry.open(store_root, create=True) as reg:
        town.people(reg)
    register_folder(tiny.make_embedder(tmp_path / "other-embedder", seed=1), name="other")
    mta_ok("bank", "build", *TASK, *QUICK)
    return store_root


def fuse(*more: object) -> list[dict[str, object]]:
    words = ("user", "fuse", "ida", *TASK, *CPU, "--weights", "similarity", *more, "--json")
    return mta_ok(*words).json()["anchors"]  # type: ignore[no-any-return]


def profiles(root: Path) -> set[str]:
    """The names of the embedders that made profiles of ida."""
    with Registry.open(root) as reg:
        ida = reg.users.get("ida")
        found = [one for one in reg.models.all() if reg.profiles.get(ida.id, "lamp-2", one.fingerprint) is not None]
    return {one.name for one in found}


def test_the_banks_embedder_compares_users_whatever_the_settings_say(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = fuse()
    assert fuse("--embedder", "tiny-embedder") == expected
    monkeypatch.setenv("MTA_MODELS_EMBEDDER", "other")
    assert fuse() == expected and profiles(store) == {"tiny-embedder"}
    monkeypatch.setenv("MTA_MODELS_EMBEDDER", "not-here")
    mta_ok("user", "adapt", "jon", *TASK, *CPU, "--shots", 3, "--steps", 6)
    assert fuse() == expected and profiles(store) == {"tiny-embedder"}


@pytest.mark.parametrize("verb", ["fuse", "adapt"])
def test_another_embedder_that_is_asked_for_is_refused(store: Path, verb: str) -> None:
    for more in ((), ("--dry-run",)):
        ran = mta("user", verb, "ida", *TASK, *CPU, "--embedder", "other", *more)
        refused(ran, 2, "--embedder other: bank lamp-2 v1 was built with tiny-embedder", "leave --embedder out")
        assert "mta bank build --task lamp-2 --embedder other" in ran.err


@pytest.mark.parametrize("verb", ["fuse", "adapt"])
def test_an_embedder_that_is_gone_or_another_by_now_is_named(store: Path, tmp_path: Path, verb: str) -> None:
    mta_ok("model", "rm", "tiny-embedder", "--yes")
    ran = mta("user", verb, "ida", *TASK, *CPU)
    refused(ran, 3, "Bank lamp-2 v1 was built with the embedder tiny-embedder, which is not on this machine")
    assert "mta bank build --task lamp-2" in ran.err
    register_folder(tiny.make_embedder(tmp_path / "new", seed=2), name="tiny-embedder")
    refused(
        mta("user", verb, "ida", *TASK, *CPU), 3, "another version of the embedder tiny-embedder than this machine has"
    )
