"""Models by name: registered folders, paths used directly, the wrong kind, what is gone, damaged or taken away."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mta_cli.engine.model import checkpoint_files as folders
from mta_cli.errors import BadInput, Command, IntegrityFault, NotFound
from mta_cli.events import JobResult, Note
from mta_cli.options import MachineOptions
from mta_cli.pipeline.maintenance.doctor import DoctorRequest, run_checks
from mta_cli.pipeline.maintenance.repair import repair
from mta_cli.pipeline.models import manifest as manifests
from mta_cli.pipeline.models.installed import (
    list_models,
    model_names,
    removal_preview,
    resolve_model,
    uninstall_model,
    verify_model,
)
from mta_cli.pipeline.models.load import load_on_device
from mta_cli.pipeline.models.manifest import models_dir
from mta_cli.pipeline.models.pull import register_folder


@pytest.fixture
def own(tiny_base_path: Path, tmp_path: Path, models_root: Path) -> Path:
    """A copy of the tiny base that a test may change, registered as `own`."""
    path = Path(shutil.copytree(tiny_base_path, tmp_path / "own"))
    register_folder(path)
    return path


def test_a_registered_folder_is_found_by_name_and_never_copied(own: Path) -> None:
    entry = resolve_model("own", "base")
    assert (entry.name, entry.kind, entry.path) == ("own", "base", own)
    assert entry.fingerprint == folders.fingerprint(own)
    assert entry.detail["parameters"] == folders.parameter_count(own)
    assert [found.name for found in list_models()] == ["own"]
    assert not list(models_dir().rglob("*.safetensors"))


def test_a_path_needs_no_name(tiny_embedder_path: Path, models_root: Path) -> None:
    entry = resolve_model(str(tiny_embedder_path), "embedder")
    assert entry.path == tiny_embedder_path
    assert entry.fingerprint == folders.fingerprint(tiny_embedder_path)
    assert list_models() == []


def test_a_path_relative_to_where_one_stands(
    tiny_base_path: Path, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_base_path.parent)
    assert resolve_model(f"./{tiny_base_path.name}").path == tiny_base_path


def test_a_folder_is_read_once_until_it_changes(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve_model("own").fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "make_manifest", lambda *_, **__: pytest.fail("the folder was read again"))
        assert resolve_model("own").fingerprint == before
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.25}))
    with pytest.raises(IntegrityFault, match=r"config\.json has changed"):
        resolve_model("own")
    register_folder(own)
    assert resolve_model("own").fingerprint != before


def test_a_models_directory_that_cannot_be_written_only_costs_time(
    tiny_base_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MTA_MODELS", str(tmp_path / "file"))
    assert resolve_model(str(tiny_base_path)).kind == "base"


@pytest.mark.parametrize(("place", "reason"), [("~nosuchuser/m", "home directory"), ("x" * 300, "too long")])
def test_a_models_directory_that_can_be_none(place: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTA_MODELS", place)
    for ask in (models_dir, list_models, lambda: resolve_model("own")):
        with pytest.raises(BadInput, match=reason) as caught:
            ask()
        assert caught.value.message.startswith("MTA_MODELS") and len(caught.value.message) < 300


def test_the_wrong_kind_is_refused(own: Path) -> None:
    with pytest.raises(BadInput, match="own is a base, not an embedder"):
        resolve_model("own", "embedder")


def test_a_default_that_is_not_here_says_how_to_get_it(models_root: Path) -> None:
    with pytest.raises(NotFound) as caught:
        resolve_model("smollm2-135m-instruct", "base")
    assert caught.value.hint == Command("model pull", "smollm2-135m-instruct")
    with pytest.raises(NotFound) as caught:
        resolve_model("hf:org/name@main")
    assert caught.value.hint == Command("model pull", "hf:org/name@main")


@pytest.mark.parametrize("name", ["smollm2-135m-instrukt", "owm"])
def test_near_names_are_suggested(own: Path, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        resolve_model(name)
    assert "did you mean" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["", "../x", "/no/where", "x" * 10_000, "a\nb", "\x1b[31m", "..", ".locks"])
def test_names_that_are_none(models_root: Path, name: str) -> None:
    with pytest.raises((NotFound, BadInput)):
        resolve_model(name)
    with pytest.raises((NotFound, BadInput)):
        uninstall_model(name)


def test_a_folder_that_is_gone(own: Path) -> None:
    shutil.rmtree(own)
    with pytest.raises(NotFound, match="is gone"):
        resolve_model("own")
    (entry,) = list_models()
    assert "is gone" in entry.detail["fault"]
    assert uninstall_model("own")["folder"] == str(own)
    assert list_models() == []


def test_removing_a_registered_folder_keeps_its_files(own: Path) -> None:
    assert removal_preview("own")["folder"] == str(own)
    uninstall_model("own")
    assert (own / "model.safetensors").exists()
    with pytest.raises(NotFound):
        resolve_model("own")


def test_a_registered_folder_in_the_models_directory_keeps_its_files(
    tiny_base_path: Path, models_root: Path, tmp_path: Path
) -> None:
    place = Path(shutil.copytree(tiny_base_path, models_dir() / "mine"))
    register_folder(place)
    before = set(folders.model_files(place)) - {Path(manifests.MANIFEST)}
    (place / "chat_template.jinja").write_text("changed")
    *notes, result = repair(tmp_path / "store", 1.0, lambda found: None)
    assert isinstance(result, JobResult) and result.result == {"repairs": []}
    assert any(isinstance(note, Note) and "cannot be repaired" in note.text for note in notes)
    assert removal_preview("mine")["bytes"] == (place / manifests.MANIFEST).stat().st_size
    uninstall_model("mine")
    assert set(folders.model_files(place)) == before and list_models() == []


def test_a_removal_that_the_disk_refuses_is_said_in_words(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(BadInput, match="cannot be removed: Permission denied"):
        uninstall_model("own")


def test_a_name_is_given_once(own: Path, tiny_embedder_path: Path) -> None:
    register_folder(own, name="own")
    with pytest.raises(BadInput, match="Another model is named"):
        register_folder(tiny_embedder_path, name="own")
    with pytest.raises(BadInput, match="Another model is named"):
        register_folder(tiny_embedder_path, name="minilm-l6")


@pytest.mark.parametrize("name", ["../up", "-x", "a b", "x" * 101, "é"])
def test_names_that_cannot_be_given(own: Path, name: str) -> None:
    with pytest.raises(BadInput, match="cannot be a model's name"):
        register_folder(own, name=name)


def test_a_gguf_file_is_no_folder(tmp_path: Path, models_root: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match="cannot be registered"):
        register_folder(tmp_path / "model.gguf")


def test_verify_reads_every_file(own: Path) -> None:
    assert verify_model("own") == []
    stat = (own / "chat_template.jinja").stat()
    (own / "chat_template.jinja").write_text("x" * stat.st_size)
    os.utime(own / "chat_template.jinja", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # silently, as a failing disk does
    (fault,) = verify_model("own")
    assert "chat_template.jinja" in fault


def test_a_damaged_manifest_is_named_and_removable(own: Path) -> None:
    (models_dir() / "own" / manifests.MANIFEST).write_text("{")
    with pytest.raises(IntegrityFault, match="cannot be read"):
        resolve_model("own")
    assert "fault" in list_models()[0].detail
    uninstall_model("own")
    assert list_models() == []


def test_a_repair_of_a_damaged_manifest_keeps_the_folder_s_files(own: Path, tmp_path: Path) -> None:
    place = models_dir() / "own"
    (place / manifests.MANIFEST).write_text("{")
    (place / "model.safetensors").write_bytes(b"weights")
    *_, result = repair(tmp_path / "store", 1.0, lambda found: None)
    assert isinstance(result, JobResult) and len(result.result["repairs"]) == 1
    assert [path.name for path in place.iterdir()] == ["model.safetensors"] and list_models() == []


def test_completion_knows_what_is_here_and_what_could_be(own: Path) -> None:
    names = model_names()
    assert {"minilm-l6", "own", "qwen3-0.6b", "smollm2-135m-instruct"} <= set(names)
    assert names == sorted(set(names))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_file_that_may_not_be_read_is_named_and_no_damage(
    own: Path, store_root: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, entry = Path.open, resolve_model("own")
    another = Path(shutil.copytree(own, tmp_path / "another"))

    def refuse(path: Path, *how: Any, **more: Any) -> Any:
        if path.name == name and path.parent in (own, another):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return plain(path, *how, **more)

    monkeypatch.setattr(Path, "open", refuse)
    said = re.escape(f"{name} cannot be read: Permission denied")
    for act in (
        lambda: verify_model("own"),
        lambda: register_folder(another),
        lambda: load_on_device(entry, MachineOptions(device="cpu")),
    ):
        with pytest.raises(BadInput, match=said):
            act()
    *_, result = run_checks(DoctorRequest(store_root, "own", "tiny-embedder", deep=True))
    assert isinstance(result, JobResult)
    (told,) = [each for each in result.result["checks"] if each["name"] == "models"]
    assert not told["ok"] and re.search(said, told["detail"])
    events = list(repair(store_root, 1.0, lambda found: pytest.fail("nothing is damaged")))
    assert any(isinstance(event, Note) and "own was not checked" in event.text for event in events)
