"""`mta doctor` from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.shell import mta, mta_ok


def test_a_fresh_machine_is_well(models_root: Path) -> None:
    result = mta_ok("doctor", "--json").json()
    assert result["ok"] is True
    assert all(set(check) == {"name", "ok", "detail"} for check in result["checks"])
    assert {"python", "packages", "sqlite", "cpu", "disk", "store", "models"} <= {
        check["name"] for check in result["checks"]
    }


def test_it_can_be_read(store_root: Path) -> None:
    shown = mta_ok("doctor", "--deep").out
    assert "sqlite" in shown
    assert "FTS5" in shown
    assert "tiny" in shown


def test_settings_and_their_origin(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_RANK", "4")
    found = {check["name"]: check["detail"] for check in mta_ok("doctor", "--json").json()["checks"]}
    assert "bank.rank = 4 (environment MTA_BANK_RANK)" in found["settings"]


def test_settings_that_cannot_be_read_are_a_finding(store_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_BANK_RANK", "many")
    ran = mta("doctor", "--json")
    assert ran.code == 5
    assert not ran.json()["ok"]
    assert "bank.rank" in {check["name"]: check["detail"] for check in ran.json()["checks"]}["settings"]
    assert "settings" in ran.err


def test_a_broken_store_gives_exit_code_5(store_root: Path) -> None:
    store_root.mkdir()
    (store_root / "registry.db").write_bytes(b"x" * 5000)
    ran = mta("doctor", "--json")
    assert ran.code == 5
    assert "store" in ran.err
