"""The doctor finds what is broken, calls what is absent absent, and never falls over what it finds."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.events import JobProgress, JobResult
from mta_cli.pipeline.maintenance import doctor
from mta_cli.pipeline.maintenance.doctor import DoctorRequest, run_checks, summary
from mta_cli.pipeline.models.manifest import models_dir
from mta_cli.pipeline.models.pull import register_folder
from store.registry import Registry
from tests.store.making import adapted, bank, person


@pytest.fixture
def what(store_root: Path) -> DoctorRequest:
    return DoctorRequest(store_root, "tiny", "tiny-embedder")


def checks(what: DoctorRequest) -> tuple[bool, dict[str, dict[str, Any]]]:
    events = list(run_checks(what))
    assert isinstance(events[-1], JobResult)
    result = events[-1].result
    assert len(result["checks"]) == sum(isinstance(event, JobProgress) for event in events)
    return result["ok"], {check["name"]: check for check in result["checks"]}


def test_all_is_well_without_a_store(what: DoctorRequest) -> None:
    ok, found = checks(what)
    assert ok, found
    assert "mta init" in found["store"]["detail"]
    assert not what.store.exists()
    assert "parameters" in found["base"]["detail"]


def test_models_that_are_absent_are_no_fault(what: DoctorRequest) -> None:
    ok, found = checks(replace(what, base="smollm2-135m-instruct"))
    assert ok
    assert "mta model pull smollm2-135m-instruct" in found["base"]["detail"]


@pytest.mark.parametrize("name", ["nobase", "./no/folder"])
def test_a_configured_model_that_is_nowhere_is_a_fault(what: DoctorRequest, name: str) -> None:
    ok, found = checks(replace(what, base=name))
    assert not ok and not found["base"]["ok"] and "There is no model" in found["base"]["detail"]


def test_a_store_that_is_no_database(what: DoctorRequest) -> None:
    what.store.mkdir()
    (what.store / "registry.db").write_bytes(b"not a database" * 1000)
    ok, found = checks(what)
    assert not ok
    assert not found["store"]["ok"]


def test_a_store_that_has_lost_its_registry(what: DoctorRequest) -> None:
    with Registry.open(what.store, create=True) as reg:
        bank(reg, [person(reg, "alice")])
    (what.store / "registry.db").unlink()
    ok, found = checks(what)
    assert not ok and "registry.db is missing" in found["store"]["detail"]


def test_a_healthy_store_is_counted(what: DoctorRequest) -> None:
    from store.registry import Registry

    with Registry.open(what.store, create=True) as registry:
        registry.users.add("ada")
    ok, found = checks(what)
    assert ok, found
    assert "1 users" in found["store"]["detail"]


def test_the_wrong_kind_of_default(what: DoctorRequest) -> None:
    ok, found = checks(replace(what, base="tiny-embedder"))
    assert not ok
    assert "not a base" in found["base"]["detail"]


def test_a_model_that_cannot_be_loaded_is_a_fault(what: DoctorRequest, tiny_base_path: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))
    register_folder(copy)
    (copy / "adapter_config.json").write_text("{}")
    ok, found = checks(what)
    assert not ok
    assert "adapter_config.json" in found["models"]["detail"]


def test_deep_reads_every_file(what: DoctorRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    import mta_cli.pipeline.models.installed as models

    monkeypatch.setattr(models, "verify_model", lambda name: [f"a bit of {name} flipped"])
    assert checks(what)[0]
    ok, found = checks(replace(what, deep=True))
    assert not ok
    assert "a bit of tiny flipped" in found["models"]["detail"]


def test_settings_are_shown_with_their_origin(what: DoctorRequest) -> None:
    lines = (("bank.rank", "4", "environment MTA_BANK_RANK"), ("bank.alpha", "16", "default"))
    _, found = checks(replace(what, settings=lines))
    assert found["settings"]["detail"] == "bank.rank = 4 (environment MTA_BANK_RANK)"
    ok, found = checks(replace(what, settings_fault="mta.toml: no such key"))
    assert not ok
    assert found["settings"]["detail"] == "mta.toml: no such key"


def test_old_packages_and_missing_ones(what: DoctorRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99", "no-such-package>=1", 'also-none; extra == "serve"', "rich>=1"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: needed)
    ok, found = checks(what)
    assert not ok
    told = found["packages"]["detail"]
    assert "mta needs >=99" in told and "no-such-package is missing" in told and ", rich " in told
    assert "also-none" not in told


def test_every_package_that_the_program_needs_is_looked_at(what: DoctorRequest) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == doctor.DISTRIBUTION
    _, found = checks(what)
    for name in ("torch", "transformers", "textual", "tomlkit", "sqlite-utils"):
        assert f"{name} " in found["packages"]["detail"]


def test_a_check_that_falls_over_is_a_finding(what: DoctorRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError("the machine is on fire")

    monkeypatch.setattr(doctor, "_check_cpu", broken)
    ok, found = checks(what)
    assert not ok
    assert found["cpu"] == {"name": "cpu", "ok": False, "detail": "OSError: the machine is on fire"}


def test_little_disk(what: DoctorRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_free_disk_bytes", lambda _: 1000)
    ok, found = checks(what)
    assert not ok
    assert "too little space" in found["disk"]["detail"]


def test_the_doctor_changes_nothing(what: DoctorRequest) -> None:
    before = sorted(models_dir().rglob("*"))
    checks(what)
    assert sorted(models_dir().rglob("*")) == before


def test_one_line_says_what_failed() -> None:
    bad = {"ok": False, "checks": [{"name": "cpu", "ok": True}, {"name": "store", "ok": False}]}
    assert summary(bad) == "failed checks: store"
    assert summary({"ok": True, "checks": []}) == "all is well"


def test_findings_hold_no_name_unless_asked(what: DoctorRequest) -> None:
    name = "Quetzalina Xochitl"
    with Registry.open(what.store, create=True) as reg:
        user = person(reg, name, "words")
        made = bank(reg, [user])
        stack = adapted(reg, user, made)
        reg.stacks.save_stack(replace(stack, numbers=b"four", bytes=4))
        reg._db.execute_write("UPDATE stacks SET numbers_sha256 = 'none'")
        reg._db.execute_write("UPDATE recipes SET bytes = 1")
        other = bank(reg, [user], key="other")
        wrong = reg.banks.anchors(other.id)[0].id
        reg._db.execute_write("UPDATE recipe_anchors SET anchor_id = ?", (wrong,))
    ok, found = checks(what)
    assert not ok and name not in str(found)
    for fault in ("recipe of user number 1 for", "stack of user number 1 for", "refers to anchors of another bank"):
        assert fault in found["store"]["detail"]
    _, named = checks(replace(what, names=True))
    assert found["store"]["detail"].replace("user number 1", name) == named["store"]["detail"]
