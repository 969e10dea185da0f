"""`mta init`: it makes a store, says so, and does it once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.shell import mta, mta_ok


def test_it_makes_a_store_and_says_what_comes_next(tmp_path: Path) -> None:
    store = tmp_path / "new" / "store"
    shown = mta_ok("--store", store, "init")
    assert str(store) in shown.out and f"mta --store {store} data import" in shown.err
    assert (store / "registry.db").is_file()


def test_only_models_that_are_missing_are_to_be_pulled(
    tmp_path: Path, tiny_base_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTA_MODELS", str(tmp_path / "models"))
    shown = mta_ok("--store", tmp_path / "a", "init").err
    assert "mta model pull smollm2-135m-instruct" in shown and "mta model pull minilm-l6" in shown
    mta_ok("model", "pull", tiny_base_path, "--name", "tiny")
    monkeypatch.setenv("MTA_MODELS_BASE", "tiny")
    shown = mta_ok("--store", tmp_path / "b", "init").err
    assert "pull tiny" not in shown and "mta model pull minilm-l6" in shown


def test_doing_it_again_changes_nothing(tmp_path: Path) -> None:
    mta_ok("--store", tmp_path / "s", "init")
    mta_ok("--store", tmp_path / "s", "user", "add", "alice")
    again = mta_ok("--store", tmp_path / "s", "init", "--json").json()
    assert again == {"store": str(tmp_path / "s"), "created": False}
    assert "alice" in mta_ok("--store", tmp_path / "s", "user", "list").out


def test_the_environment_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_STORE", str(tmp_path / "by-environment"))
    mta_ok("init")
    assert (tmp_path / "by-environment" / "registry.db").is_file()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a directory in which not even root may write")
@pytest.mark.parametrize("place", ["/proc/mta-store", "/sys/mta/store"])
def test_a_directory_that_cannot_be_written(place: str) -> None:
    ran = mta("--store", place, "init")
    assert ran.code in (4, 5) and ran.err.startswith("error: ") and place.rsplit("/", 1)[0] in ran.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    ran = mta("--store", tmp_path / "s", "init")
    assert ran.code in (4, 5) and str(tmp_path) in ran.err


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("a file")
    ran = mta("--store", tmp_path / "s", "init")
    assert ran.code in (4, 5) and ran.err.startswith("error: ") and str(tmp_path / "s") in ran.err


@pytest.mark.parametrize("name", ["with space", "Ωmega", "-dash", "a" * 100])
def test_any_directory_name_will_do(name: str, tmp_path: Path) -> None:
    mta_ok("--store", tmp_path / name, "init")
    assert (tmp_path / name / "registry.db").is_file()
