"""Exported folders: plain PEFT gives our logits, folders are written atomically, and no user is named."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mta_cli.engine.lora.adapter import LoraWeights, merge_into_base
from mta_cli.engine.model.checkpoint_files import sha256_file
from mta_cli.engine.model.load import load_base
from mta_cli.errors import BadInput, Flag, NotFound
from mta_cli.events import JobResult, Note
from mta_cli.pipeline.models.manifest import ModelEntry
from mta_cli.pipeline.personalize.export import ExportOptions, content_digest, export_user, pad_to_uniform_rank
from mta_cli.pipeline.user_weights import loras_by_placement
from tests.pipeline.world import World, make_world


@pytest.mark.parametrize(("name", "mode"), [("bob", "fused"), ("alice", "adapted")])
def test_peft_gives_our_logits(world: World, tmp_path: Path, name: str, mode: str) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    folder, user = tmp_path / "adapter", world.reg.users.get(name)
    list(export_user(world.reg, world.entry, user, world.task, folder))
    ids = torch.tensor([[5, 80, 9, 200, 31, 7]])
    plain = AutoModelForCausalLM.from_pretrained(world.entry.path, dtype=torch.float32)
    before = plain(ids).logits.detach()
    theirs = peft.PeftModel.from_pretrained(plain, folder)(ids).logits.detach()
    base = load_base(world.entry.path, name="tiny", fingerprint=world.entry.fingerprint, device="cpu", dtype="float32")
    weights, late, _ = loras_by_placement(world.reg, world.entry.fingerprint, user, "free", mode)
    assert late is None
    with torch.no_grad(), merge_into_base(base, weights):
        ours = base.model(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(before, theirs, atol=1e-2)


def test_the_result_describes_the_folder(world: World, tmp_path: Path) -> None:
    *_, done = export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "made" / "here")
    assert isinstance(done, JobResult)
    result, folder = done.result, tmp_path / "made" / "here"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "examples.json",
        "mta-export.json",
    ]
    assert result["source"]["mode"] == "adapted" and result["rank"] == 2 + 3 + 4 + 2
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == result["rank"] and len(config["target_modules"]) == result["modules"]
    weights = LoraWeights.from_file(folder / "adapter_model.safetensors")
    assert content_digest(weights) == result["digest"]
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["mta"])
    assert about["digest"] == result["digest"] and about["base"] == world.entry.fingerprint
    assert [path.name for path in folder.parent.iterdir()] == ["here"]


def test_nobody_is_named(world: World, tmp_path: Path) -> None:
    list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "a"))
    written = b"".join(path.read_bytes() for path in (tmp_path / "a").iterdir() if path.name != "examples.json")
    assert not any(name in written for name in (b"alice", b"dave", b"erin"))


def test_the_same_model_gives_the_same_bytes(world: World, tmp_path: Path) -> None:
    for name in ("a", "b"):
        list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / name))
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_with_something_in_it_is_kept(world: World, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "full"))
    list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "full", ExportOptions(replace=True)))
    assert (tmp_path / "full" / "letter.txt").read_text() == "mine"
    assert (tmp_path / "full" / "adapter_config.json").exists()
    with pytest.raises(BadInput, match="is a file"):
        letter = tmp_path / "full" / "letter.txt"
        list(export_user(world.reg, world.entry, world.alice, world.task, letter, ExportOptions(replace=True)))


def test_only_files_of_an_earlier_export_are_replaced(world: World, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    place.mkdir()

    def write() -> None:
        list(export_user(world.reg, world.entry, world.alice, world.task, place, ExportOptions(replace=True)))

    (place / "README.md").write_text("my own project")
    with pytest.raises(BadInput, match="is not empty") as full:
        list(export_user(world.reg, world.entry, world.alice, world.task, place))
    assert full.value.hint == ("Name another folder with ", Flag("to"), "."), "there is no export to replace"
    with pytest.raises(BadInput, match=r"README\.md is not as an export"):
        write()
    assert [path.name for path in place.iterdir()] == ["README.md"]
    (place / "README.md").unlink()
    (place / "mta-export.json").write_text("a file of mine")
    with pytest.raises(BadInput, match=r"mta-export\.json is not as an export"):
        write()
    assert (place / "mta-export.json").read_text() == "a file of mine"
    (place / "mta-export.json").unlink()
    write()
    write()
    with pytest.raises(BadInput, match="is not empty") as full:
        list(export_user(world.reg, world.entry, world.alice, world.task, place))
    also = (", or replace the export in it with ", Flag("yes"))
    assert full.value.hint == ("Name another folder with ", Flag("to"), *also, ".")
    for name in ("README.md", "adapter_config.json"):
        before = (place / name).read_bytes()
        (place / name).write_text("changed since")
        with pytest.raises(BadInput, match=name):
            write()
        assert (place / name).read_text() == "changed since"
        (place / name).write_bytes(before)
    (place / "adapter_model.safetensors").write_bytes(b"other weights")
    with pytest.raises(BadInput, match="adapter_model"):
        write()


def test_what_a_list_names_outside_the_folder_stays(world: World, tmp_path: Path) -> None:
    place, letter = tmp_path / "shared", tmp_path / "letter.txt"
    list(export_user(world.reg, world.entry, world.alice, world.task, place))
    for path in (letter, place / "old.bin"):
        path.write_text("mine")
    (place / "link").symlink_to(tmp_path)
    (place / "folder").mkdir()
    listed = json.loads((place / "mta-export.json").read_text())
    known = [sha256_file(letter), ""]
    for name in ("../letter.txt", str(letter), "link/letter.txt", "folder/../../letter.txt", "old.bin", "folder", ".."):
        listed["files"][name] = known
    (place / "mta-export.json").write_text(json.dumps(listed))
    list(export_user(world.reg, world.entry, world.alice, world.task, place, ExportOptions(replace=True)))
    assert letter.read_text() == "mine" and (place / "folder").is_dir()
    assert not (place / "old.bin").exists(), "a file of an export in another form"
    after = json.loads((place / "mta-export.json").read_text())["files"]
    assert {"README.md", "old.bin"} <= after.keys() and not any("letter" in name for name in after)


def test_an_empty_folder_is_filled(world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    list(export_user(world.reg, world.entry, world.bob, world.task, tmp_path / "empty"))
    assert (tmp_path / "empty" / "adapter_config.json").exists()


def test_a_failed_write_leaves_nothing(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    place = tmp_path / "disk"
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        list(export_user(world.reg, world.entry, world.alice, world.task, place / "a"))
    assert list(place.iterdir()) == []


def test_a_place_that_no_folder_can_be_moved_to_has_a_hint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("mta_cli.pipeline.users.exported_folders.os.replace", busy)
    with pytest.raises(BadInput, match="resource busy") as refused:
        list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "out"))
    assert refused.value.hint == ("Name a new folder in it with ", Flag("to"), ".")


def test_nothing_personal_is_nothing_to_export(world: World, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no fusion"):
        list(export_user(world.reg, world.entry, world.carol, world.task, tmp_path / "a"))
    with pytest.raises(NotFound, match="no stack"):
        loras_by_placement(world.reg, world.entry.fingerprint, world.bob, world.task, "adapted")
    assert not (tmp_path / "a").exists()


def test_one_rank_changes_no_delta(world: World) -> None:
    weights, late, _ = loras_by_placement(world.reg, world.entry.fingerprint, world.alice, "free", "adapted")
    assert weights is not None and late is None
    padded = pad_to_uniform_rank(LoraWeights(weights.factors, 0.5, weights.placement))
    assert {a.shape[0] for a, _ in padded.factors.values()} == {weights.rank} and padded.scale == 1.0
    for path in weights.factors:
        assert torch.allclose(padded.delta_weight(path), 0.5 * weights.delta_weight(path), atol=1e-6)


def test_a_hub_model_is_named_as_on_the_hub(world: World, tmp_path: Path) -> None:
    hub = ModelEntry("hf:org/model@main", "base", world.entry.path, world.entry.fingerprint)
    list(export_user(world.reg, hub, world.alice, world.task, tmp_path / "a"))
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/model", "main")
    card = (tmp_path / "a" / "README.md").read_text()
    assert 'from_pretrained("org/model", revision="main")' in card and "vllm serve org/model --revision main -" in card
    list(export_user(world.reg, hub, world.alice, world.task, tmp_path / "b", ExportOptions(base_name="mine")))
    assert "revision" not in (tmp_path / "b" / "README.md").read_text()


def test_a_smaller_rank_is_the_nearest_and_says_what_is_lost(world: World, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    exact = loras_by_placement(world.reg, world.entry.fingerprint, world.alice, world.task, "adapted")[0]
    assert exact is not None and exact.rank > 3
    seen = list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "small", ExportOptions(rank=3)))
    assert any(isinstance(event, Note) and "reduced to 3" in event.text for event in seen)
    tensors = load_file(tmp_path / "small" / "adapter_model.safetensors")
    path = "model.layers.1.self_attn.q_proj"
    a, b = (tensors[f"base_model.model.{path}.lora_{half}.weight"] for half in "AB")
    assert a.shape[0] == 3
    best = float(torch.linalg.svdvals(exact.delta_weight(path))[3:].square().sum().sqrt())
    assert float((b @ a - exact.delta_weight(path)).norm()) == pytest.approx(best, rel=1e-3)


def test_the_folder_says_how_to_ask(world: World, tmp_path: Path) -> None:
    list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert world.entry.fingerprint in card and '"role": "user"' in card and "alice" not in card


def test_a_model_with_late_parts_is_refused(store_root: Path, tmp_path: Path) -> None:
    """PEFT has no way to say that an adapter skips early tokens; a fusion without such parts is exported as ever."""
    world = make_world(store_root, stacks="late")
    with pytest.raises(BadInput, match="late tokens") as refused:
        list(export_user(world.reg, world.entry, world.alice, world.task, tmp_path / "a"))
    assert isinstance(refused.value.hint, tuple) and Flag("placement", "upper") in refused.value.hint
    assert not (tmp_path / "a").exists()
    list(export_user(world.reg, world.entry, world.bob, world.task, tmp_path / "b"))
    assert (tmp_path / "b" / "adapter_config.json").exists()
    world.reg.close()


def test_a_check_counts_the_answers_that_change(world: World, tmp_path: Path) -> None:
    """None where nothing is lost, though all parts are added up; some where only rank 1 of much stays."""
    found = {}
    for name, options in (("exact", ExportOptions(check=True)), ("small", ExportOptions(rank=1, check=True))):
        *events, done = export_user(world.reg, world.entry, world.alice, world.task, tmp_path / name, options)
        assert isinstance(done, JobResult)
        found[name] = (done.result["changed"], done.result["asked"])
        sentence = f"{found[name][0]} of {found[name][1]} answers differ"
        assert any(isinstance(event, Note) and sentence in event.text for event in events)
        assert sentence in (tmp_path / name / "README.md").read_text()
    assert found["exact"] == (0, 4) and found["small"][0] > 0


def test_the_least_rank_that_keeps_the_users_own_answers_is_chosen(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mta_cli.pipeline.personalize.export.AUTO_RANKS", (1, 3, 5, 8))
    found = {}
    for allowed in (-1.0, 0.001, 100.0):
        monkeypatch.setattr("mta_cli.pipeline.personalize.export.MAX_AUTO_LOSS", allowed)
        folder = tmp_path / str(allowed)
        *events, done = export_user(world.reg, world.entry, world.alice, world.task, folder, ExportOptions(rank="auto"))
        assert isinstance(done, JobResult)
        found[allowed] = done.result
        said = any(isinstance(event, Note) and "Loss of the user's own answers" in event.text for event in events)
        assert said == ("heldout_export" in done.result) == (done.result["rank"] < 11)
    ranks = [one["rank"] for one in found.values()]
    assert ranks[0] == 11 and ranks[2] == 1 and ranks[1] in (1, 3, 5, 8)
    close = found[0.001]
    assert close["heldout_export"] <= close["heldout_model"] + 0.0011, "a smaller rank may even have less"


def test_what_late_parts_lose_is_measured(store_root: Path, tmp_path: Path) -> None:
    world = make_world(store_root, stacks="late")
    *_, done = export_user(
        world.reg, world.entry, world.alice, world.task, tmp_path / "a", ExportOptions(approximate=True)
    )
    assert isinstance(done, JobResult)
    assert done.result["heldout_answers"] == 4
    assert done.result["heldout_export"] != pytest.approx(done.result["heldout_model"], abs=1e-4)
    assert f"{done.result['heldout_export']:.3f} with this one" in (tmp_path / "a" / "README.md").read_text()
    world.reg.close()


def test_a_check_needs_something_to_ask(world: World, tmp_path: Path) -> None:
    bank, zoe = world.reg.banks.get("tests"), world.reg.users.add("zoe")
    known = world.reg.recipes.get(world.bob.id, world.task, bank.id)
    assert known is not None
    world.reg.recipes.save_recipe(replace(known, user_id=zoe.id))
    with pytest.raises(NotFound, match="so no answers can be compared"):
        list(export_user(world.reg, world.entry, zoe, world.task, tmp_path / "a", ExportOptions(check=True)))
    assert not (tmp_path / "a").exists()
