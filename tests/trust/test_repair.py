"""What is repaired loses nothing, and the store answers as it did; what is damaged otherwise is left and named."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import BadInput, IntegrityFault, MtaError
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.maintenance.repair import repair
from mta_cli.pipeline.models import verify
from mta_cli.pipeline.models.installed import list_models, resolve_model
from mta_cli.pipeline.models.manifest import model_dir, write_manifest
from store import connection
from store.registry import Registry
from tests.pipeline import town
from tests.trust.harm import ASKING, Ground, change, kept
from tests.trust.tally import tally


def repaired(root: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = town.finish(repair(root, 10.0, lambda found: None))[0]["repairs"]
    with Registry.open(root) as reg:
        assert reg.check_integrity() == []
    assert town.finish(repair(root, 10.0, lambda found: None))[0] == {"repairs": []}
    tally("an index or files that are not needed", "made again or removed", len(found))
    return found


def test_files_that_belong_to_nobody(ground: Ground) -> None:
    root = ground.copy()
    for name in (f"{'a' * 64}.safetensors", ".mta-00.tmp"):
        path = root / "adapters" / "aa" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nobody's")
    found = repaired(root)
    assert [each["action"] for each in found] == ["removed"] * len(found) and found
    assert not any((root / "adapters" / "aa").iterdir())


def test_a_full_text_index(ground: Ground) -> None:
    root = ground.copy()
    change(root, "DELETE FROM items_fts_data WHERE id > 10")
    (only,) = repaired(root)
    assert "full-text" in only["what"]
    assert ground.ask(root).given == ground.answers


def test_nothing_is_done_without_agreement(ground: Ground) -> None:
    root = ground.copy()
    change(root, "INSERT INTO items_fts (items_fts) VALUES ('delete-all')")

    def refuse(found: Any) -> None:
        raise MtaError("no")

    with pytest.raises(MtaError, match="no"):
        list(repair(root, 10.0, refuse))
    with Registry.open(root) as reg:
        assert reg.check_integrity() != []


def test_an_adapter_that_is_damaged_or_gone_is_named_and_left(ground: Ground) -> None:
    root = ground.copy()
    first, second, *_ = sorted(root.glob("adapters/??/*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    assert town.finish(repair(root, 10.0, lambda found: None))[0] == {"repairs": []}
    with Registry.open(root) as reg:
        found = reg.check_integrity()
    assert [line for line in found if first.stem in line and "damaged" in line]
    assert [line for line in found if second.stem in line and "gone" in line] and len(found) == 2


def test_what_is_no_database_is_left_alone(ground: Ground) -> None:
    root = ground.copy()
    (root / "registry.db").write_bytes(b"not a database" * 999)
    with pytest.raises(IntegrityFault) as caught:
        list(repair(root, 10.0, lambda found: None))
    assert caught.value.hint
    assert (root / "registry.db").read_bytes() == b"not a database" * 999


def test_a_pulled_model_goes_and_a_folder_of_the_persons_own_stays(ground: Ground) -> None:
    (tiny,) = (entry for entry in list_models() if entry.name == "tiny")
    place = model_dir("mine")
    shutil.copytree(tiny.path, place)
    write_manifest(place, {"name": "mine", "kind": "base", "fingerprint": tiny.fingerprint, **tiny.detail})
    (place / "config.json").write_bytes((place / "config.json").read_bytes().replace(b"2048", b"2047"))
    with kept(tiny.path / "model.safetensors"):
        (tiny.path / "model.safetensors").write_bytes(b"x")
        result, seen = town.finish(repair(ground.copy(), 10.0, lambda found: None))
    assert [each["again"] for each in result["repairs"]] == ["mta model pull mine"]
    assert not place.exists() and tiny.path.exists()
    assert any("tiny" in note and "cannot be repaired" in note for note in town.notes(seen))


def test_a_process_looks_once_and_not_at_all_when_it_is_told_not_to(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr("mta_cli.pipeline.models.installed.model_faults", lambda model: looked.append(model.name) or [])
    monkeypatch.setattr("store.integrity.check.find_structure_faults", lambda root: looked.append("registry") or [])
    verify._verified_keys.clear()
    trusting = replace(ASKING, machine=replace(town.CPU, verify=False))
    with Registry.open(ground.copy()) as reg:
        for asking in (trusting, ASKING, ASKING):
            ChatModel.load_for_user(reg, resolve_model("tiny", "base"), reg.users.get("jon"), asking)
            expected = [] if asking is trusting else ["registry", "tiny"]
            assert sorted(looked) == expected
        monkeypatch.setattr(verify, "MAX_VERIFIED_REGISTRY_BYTES", 0)
        verify._verified_keys.clear()
        looked.clear()
        ChatModel.load_for_user(reg, resolve_model("tiny", "base"), None, ASKING)
        assert looked == ["tiny"]


@pytest.mark.parametrize("name", [f"{'a' * 64}.safetensors", ".mta-00.tmp"])
def test_a_read_only_disk_is_named(ground: Ground, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ground.copy()
    path = root / "adapters" / "aa" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"nobody's")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(connection.os, "access", lambda *_: False)  # as a disk answers that is mounted to be read
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BadInput, match=f"{name} cannot be removed: Read-only file system"):
        town.finish(repair(root, 10.0, lambda found: None))


def test_a_disk_that_fails_is_no_damaged_index(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if "integrity-check" in statement:
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = "SQLITE_IOERR_WRITE"
                raise error
            return super().execute(statement, *values)  # type: ignore[arg-type]

    root, plain = ground.copy(), sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: plain(*a, **k, factory=Failing))
    with pytest.raises(IntegrityFault, match=r"The disk failed while the store at .* disk I/O error"):
        town.finish(repair(root, 10.0, lambda found: pytest.fail("there is nothing to repair")))
    with Registry.open(root) as reg:
        (told,) = reg.check_integrity()
    assert told.startswith("The disk failed") and "index" not in told


def test_a_log_that_needs_writing_to_be_read_is_no_damage(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unopened(sqlite3.Connection):
        def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
            if statement == "PRAGMA user_version":
                error = sqlite3.OperationalError("unable to open database file")
                error.sqlite_errorname = "SQLITE_CANTOPEN"
                raise error
            return super().execute(statement, *values)  # type: ignore[arg-type]

    root, plain = ground.copy(), sqlite3.connect
    (root / "registry.db-wal").write_bytes(b"the last changes")
    monkeypatch.setattr(connection.os, "access", lambda *_: False)
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: plain(*a, **k, factory=Unopened))
    with pytest.raises(BadInput, match="its last changes are in registry"):
        town.finish(repair(root, 10.0, lambda found: None))
