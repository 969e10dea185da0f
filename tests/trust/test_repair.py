"""What is repaired comes back by the command that is named, and the store answers as it did; all else stays."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mta_cli.errors import IntegrityFault, MtaError, StoreBusy
from mta_cli.pipeline.chat.answer import ChatModel
from mta_cli.pipeline.maintenance.repair import repair
from mta_cli.pipeline.models import verify
from mta_cli.pipeline.models.lookup import list_models, resolve_model
from mta_cli.pipeline.models.manifest import model_dir, write_manifest
from mta_cli.pipeline.personalize.adapt import adapt_users
from store.records import NewItem
from store.registry import Registry
from tests.pipeline import town
from tests.store.test_files import DEAD
from tests.trust.harm import ASKING, Ground, change, kept
from tests.trust.tally import tally

SAID = {"done": "made again", "nothing": "removed", "nothing uses it": "removed"}
"""How what was lost comes back, where no command is named."""


def repaired(root: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = town.finish(repair(root, 10.0, lambda found: None))[0]["repairs"]
    with Registry.open(root) as reg:
        assert reg.check_integrity() == []
    assert town.finish(repair(root, 10.0, lambda found: None))[0] == {"repairs": []}
    for one in found:
        tally("things damaged or nobody's", SAID.get(one["again"], "repaired or dropped, the way back said"))
    return found


def digest_of(root: Path, kind: str) -> str:
    with Registry.open(root) as reg:
        return next(adapter.digest for adapter in reg.adapters.all() if adapter.kind == kind)


def again(root: Path) -> None:
    """What the repairs name, as far as something is missing."""
    with Registry.open(root) as reg:
        town.built(reg)
        for names, options in ((["ida"], town.QUICK), (["jon"], town.LORA)):
            town.finish(adapt_users(reg, [reg.users.get(n) for n in names], town.fuse_request(), options))


@pytest.mark.parametrize("way", ["damaged", "gone"])
@pytest.mark.parametrize(
    ("kind", "command", "people"),
    [
        ("task", "mta bank build --task lamp-2, then mta user adapt", {"ida", "jon", "kim"}),
        ("meta", "mta bank build --task lamp-2", set()),
        ("basis", "mta user adapt --task lamp-2", {"ida"}),
        ("stack", "mta user adapt jon --task lamp-2", {"jon"}),
    ],
)
def test_an_adapter(ground: Ground, kind: str, command: str, people: set[str], way: str) -> None:
    root = ground.copy()
    digest = digest_of(root, kind)
    path = root / "adapters" / digest[:2] / f"{digest}.safetensors"
    path.unlink() if way == "gone" else path.write_bytes(path.read_bytes()[:-1] + b"?")
    (only,) = repaired(root)
    assert digest in only["what"] and only["again"] == command
    assert {name for name in town.SHORT if name in only["action"]} == people
    again(root)
    if kind != "task":  # then kim's recipe went too, and the anchors have other numbers
        assert ground.ask(root).given == ground.answers


def test_items_can_be_imported_again(ground: Ground) -> None:
    root = ground.copy()
    ida = "(SELECT id FROM users WHERE name = 'ida')"
    change(root, f"UPDATE items SET output = 'action' WHERE key = 'i1' AND user_id = {ida}")
    (first, *_) = repaired(root)
    assert "ida" in first["what"] and "mta user add ida --history FILE" in first["again"]
    with Registry.open(root) as reg:
        ida = reg.users.get("ida")
        (lost,) = (item for item in ida_items(ground) if item.key == "i1")
        assert reg.items.append_items(ida.id, [lost]) == (1, 0)
        assert reg.items.search_items(ida.id, "lamp-2", lost.input, limit=9, fill=False)
        assert reg.profiles.profile_totals("lamp-2", resolve_model("tiny-embedder").fingerprint, [ida.id]) == []


def ida_items(ground: Ground) -> list[NewItem]:
    with Registry.open(ground.root) as reg:
        found = reg.items.recent_items(reg.users.get("ida").id, "lamp-2")
    return [NewItem(item.key, item.task, item.input, item.output, item.time) for item in found]


def test_neighbours_are_embedded_again(ground: Ground) -> None:
    root = ground.copy()
    change(root, "UPDATE neighbours SET vector = zeroblob(length(vector))")
    (only,) = repaired(root)
    assert only["again"] == "mta bank build --task lamp-2 embeds them again"
    with Registry.open(root) as reg:
        assert reg.banks.get("lamp-2").kernel is None
    again(root)
    assert ground.ask(root).given == ground.answers


def test_whose_name_is_damaged_goes_whole(ground: Ground) -> None:
    root = ground.copy()
    change(root, "UPDATE users SET name = 'iba' WHERE name = 'ida'")
    (first, *_) = repaired(root)
    assert "iba" in first["what"] and "import" in first["again"]
    with Registry.open(root) as reg:
        assert "iba" not in reg.users.names() and reg.users.get("jon")


def test_files_that_belong_to_nobody(ground: Ground) -> None:
    root = ground.copy()
    for name in (f"{'a' * 64}.safetensors", f".mta-{DEAD}-00.tmp"):
        path = root / "adapters" / "aa" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nobody's")
    found = repaired(root)
    assert [each["action"] for each in found] == ["removed"] * len(found) and found
    assert not any((root / "adapters" / "aa").iterdir())


def test_records_that_are_no_documents(ground: Ground) -> None:
    """A run is removed; what an evaluation found is made again from its answers; the rest of it is gone with it."""
    with Registry.open(ground.root) as reg:
        run = reg.runs.all()[0].id
        kept_one, lost = (reg.evaluations.get_or_create_evaluation(key, "lamp-2", {}, []).id for key in ("a", "b"))
        reg.evaluations.finish_evaluation(kept_one, {"methods": {}})
    change(ground.root, f"UPDATE runs SET result = '{{' WHERE id = {run}")
    change(ground.root, f"UPDATE evaluations SET result = '[1' WHERE id = {kept_one}")
    change(ground.root, f"UPDATE evaluations SET config = '' WHERE id = {lost}")
    found = repaired(ground.root)
    assert [one["action"] for one in found] == ["the run is removed", "the evaluation is removed", "it is emptied"]
    with Registry.open(ground.root) as reg:
        assert run not in [one.id for one in reg.runs.all()]
        assert [(one.id, one.status, one.result) for one in reg.evaluations.all()] == [(kept_one, "running", {})]


def test_a_full_text_index(ground: Ground) -> None:
    root = ground.copy()
    change(root, "DELETE FROM items_fts_data WHERE id > 10")
    place = (root / "registry.db").stat().st_ino
    (only,) = repaired(root)
    assert "items_fts" in only["what"] or "full-text" in only["what"]
    assert (root / "registry.db").stat().st_ino == place, "nothing else had to be made again"
    assert ground.ask(root).given == ground.answers


def middle_of(root: Path, table: str) -> tuple[int, int]:
    """Where the last page of a table begins, and how large a page is."""
    with closing(sqlite3.connect(root / "registry.db")) as conn:
        (size,) = conn.execute("PRAGMA page_size").fetchone()
        (page,) = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    content = (root / "registry.db").read_bytes()[(page - 1) * size : page * size]
    assert content[0] == 5, "the table has one page"
    return (int.from_bytes(content[8:12], "big") - 1) * size, size


def test_what_of_a_damaged_page_cannot_be_read_is_all_that_is_lost(ground: Ground) -> None:
    root = ground.copy()
    with Registry.open(root) as reg:
        user = reg.users.add("long")
        reg.items.append_items(user.id, [NewItem(str(n), "free", f"page {n} " + "word " * 80, "x") for n in range(400)])
        before = reg.count_rows()
    start, size = middle_of(root, "items")
    content = bytearray((root / "registry.db").read_bytes())
    content[start : start + size] = b"\xff" * size
    (root / "registry.db").write_bytes(content)
    assert ground.ask(root).fault is not None
    assert "registry.db is damaged" in repaired(root)[0]["what"]
    with Registry.open(root) as reg:
        after = reg.count_rows()
    lost = {table for table, count in before.items() if after[table] != count}
    assert lost <= {"items", "neighbours", "profiles"} and before["items"] - 20 < after["items"] < before["items"]


def test_nothing_is_done_while_another_process_has_the_store_open_or_without_consent(ground: Ground) -> None:
    root = ground.copy()
    path = root / "registry.db"
    content = path.read_bytes().replace(b"CREATE INDEX", b"CREATE INDEY")
    path.write_bytes(content)

    def refuse(found: Any) -> None:
        raise MtaError("no")

    with pytest.raises(MtaError, match="no"):
        list(repair(root, 10.0, refuse))
    assert path.read_bytes() == content
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA writable_schema = ON")
        other.execute("SELECT count(*) FROM users").fetchall()
        with pytest.raises(StoreBusy, match="open"):
            list(repair(root, 10.0, lambda found: None))
    repaired(root)
    assert ground.ask(root).given == ground.answers


def test_what_is_no_database_is_left_alone(ground: Ground) -> None:
    root = ground.copy()
    (root / "registry.db").write_bytes(b"not a database" * 999)
    with pytest.raises(IntegrityFault) as caught:
        list(repair(root, 10.0, lambda found: None))
    assert "copy" in str(caught.value.hint)
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
    monkeypatch.setattr("mta_cli.pipeline.models.lookup.model_faults", lambda model: looked.append(model.name) or [])
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
