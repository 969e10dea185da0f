"""`mta model pull` against a hub on this machine, through huggingface_hub's own client and `HF_ENDPOINT`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mta_cli.pipeline.models.installed import list_models, resolve_model, verify_model
from mta_cli.pipeline.models.pull import TRUST
from tests.hub import COMMIT, Hub, serve
from tests.shell import Ran

NAME = "hf:org/tiny"


@pytest.fixture
def hub(tiny_base_path: Path, models_root: Path) -> Iterator[Hub]:
    """A hub whose repository `org/tiny` is the tiny base."""
    with serve(Hub(tiny_base_path)) as running:
        yield running


def pull(hub: Hub, name: str = NAME, *flags: str, **environment: str) -> Ran:
    """`mta model pull NAME` in a process of its own: the hub's client reads its address once."""
    settings = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(Path(os.environ["MTA_MODELS"]).parent / "hf-home"),
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        **environment,
    }
    command = [sys.executable, "-m", "mta_cli", "model", "pull", name, *flags]
    ran = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=120, check=False)
    return Ran(ran.returncode, ran.stdout, ran.stderr)


def files_left(root: Path) -> list[str]:
    """Every file in the models directory but locks."""
    return sorted(path.name for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_model_is_pulled_whole_with_the_commit_and_the_digests_that_the_hub_announces(hub: Hub) -> None:
    ran = pull(hub, NAME, "--json")
    assert ran.code == 0, ran.err
    assert (ran.json()["revision"], ran.json()["licence"]) == (COMMIT, "mit")
    entry = resolve_model(NAME, "base")
    weights = [name for name in entry.detail["files"] if name.endswith(".safetensors")]
    assert weights
    assert {name: entry.detail["files"][name] for name in weights} == {name: hub.digest(name) for name in weights}
    assert verify_model(NAME) == []
    assert not list(entry.path.parent.rglob("*.incomplete"))


def test_a_cut_download_goes_on_where_it_was_cut(hub: Hub, tmp_path: Path) -> None:
    hub.folder = Path(shutil.copytree(hub.folder, tmp_path / "copy"))
    large = hub.folder / "model-large.safetensors"  # the client writes pieces of 10 MB
    save_file({"zeros": torch.zeros(6 * 2**20)}, large)
    hub.cut_file, hub.cut_at = large.name, 15 * 2**20
    ran = pull(hub)
    assert ran.code == 0, ran.err
    ranges = [header for method, path, header in hub.asked if method == "GET" and path.endswith(large.name)]
    assert ranges == ["", f"bytes={10 * 2**20}-"]
    assert hub.sent[large.name] == hub.cut_at + large.stat().st_size - 10 * 2**20, "the rest alone is sent again"
    assert verify_model(NAME) == []


def test_a_pull_that_failed_keeps_the_files_that_came_whole(hub: Hub, tiny_base_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))
    hub.folder = copy
    (copy / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    (copy / "tokenizer.json").mkdir()  # the listing has it, and its content cannot be sent
    assert pull(hub).code != 0
    assert list_models() == []
    (copy / "tokenizer.json").rmdir()
    (tmp_path / "tokenizer.json").rename(copy / "tokenizer.json")
    assert pull(hub).code == 0
    assert hub.sent["model.safetensors"] == (copy / "model.safetensors").stat().st_size, "it was sent once"
    assert verify_model(NAME) == []


def test_wrong_bytes_are_refused_and_removed(hub: Hub, models_root: Path) -> None:
    hub.wrong_file = "model.safetensors"
    ran = pull(hub)
    assert ran.code == 5
    assert hub.digest("model.safetensors") in ran.err and "is not the file that the hub announces" in ran.err
    assert list_models() == [] and files_left(models_root) == []
    hub.wrong_file = ""
    assert pull(hub).code == 0
    assert verify_model(NAME) == []


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["refuse_listing", "refuse_files"])
def test_a_gated_model_says_what_to_accept_and_how_to_log_in(
    hub: Hub, where: str, status: int, models_root: Path
) -> None:
    setattr(hub, where, status)
    ran = pull(hub)
    assert ran.code == 3
    assert "is gated" in ran.err and "accept its licence at" in ran.err
    assert f"{hub.url}/org/tiny" in ran.err and "hf auth login" in ran.err and "HF_TOKEN" in ran.err
    assert list_models() == [] and not list(models_root.rglob("*.safetensors"))


def test_a_token_without_access_is_explained_like_a_gated_model(hub: Hub) -> None:
    hub.refuse_files, hub.error_code = 403, ""
    ran = pull(hub, HF_TOKEN="hf_invented")
    assert ran.code == 3
    assert "The hub refuses hf:org/tiny" in ran.err and "hf auth login" in ran.err


@pytest.mark.parametrize("name", ["hf:org/nothing", "hf:org/tiny@nowhere"])
def test_what_the_hub_does_not_have(hub: Hub, name: str) -> None:
    ran = pull(hub, name)
    assert ran.code == 3
    assert f"The hub has no {name}" in ran.err


def test_a_hub_that_never_answers_is_not_waited_for_forever(hub: Hub) -> None:
    hub.silent = True
    ran = pull(hub)
    assert ran.code == 1
    assert "could not be fetched" in ran.err and "pull again" in ran.err
    assert "Traceback" not in ran.err


def test_a_hub_that_is_not_there(hub: Hub) -> None:
    hub.url = "http://127.0.0.1:9"
    ran = pull(hub)
    assert ran.code == 1
    assert "could not be fetched" in ran.err


def test_a_repository_of_pickles_is_refused_before_a_download(hub: Hub, tmp_path: Path) -> None:
    hub.folder = tmp_path / "pickles"
    hub.folder.mkdir()
    (hub.folder / "config.json").write_text("{}")
    (hub.folder / "pytorch_model.bin").write_bytes(b"x")
    ran = pull(hub)
    assert ran.code == 4
    assert "no safetensors weights (it has .bin)" in ran.err
    assert hub.sent == {}


@pytest.mark.parametrize("file", ["../evil.json", "a/../../evil.json", "/etc/evil.json", "..\\evil.json"])
def test_a_file_outside_the_folder_is_refused_before_a_download(hub: Hub, file: str, models_root: Path) -> None:
    hub.extra_files = (file,)
    ran = pull(hub)
    assert ran.code == 5
    assert "lists a file outside its folder" in ran.err
    assert hub.sent == {} and files_left(models_root) == []


def test_a_short_name_is_the_model_of_the_hub_that_it_stands_for(hub: Hub) -> None:
    hub.repository = "Qwen/Qwen3-0.6B"
    assert pull(hub, "qwen3-0.6b").code == 0
    assert resolve_model("qwen3-0.6b").name == resolve_model("hf:Qwen/Qwen3-0.6B").name == "hf:Qwen/Qwen3-0.6B"
    assert "already here" in pull(hub, "hf:Qwen/Qwen3-0.6B").err
    plan: dict[str, Any] = json.loads(pull(hub, "qwen3-1.7b", "--dry-run", "--json").out or "{}")
    assert plan == {}, "this hub has no other repository"


def test_a_plan_names_the_publisher(hub: Hub) -> None:
    plan = {line["name"]: line["value"] for line in pull(hub, NAME, "--dry-run", "--json").json()["plan"]}
    assert plan["publisher"] == f"org; {TRUST}" and "no code of a model is executed" in TRUST


def test_pulling_again_says_that_the_hub_has_another_commit(hub: Hub) -> None:
    assert pull(hub).code == 0
    assert "now has commit" not in pull(hub).err
    hub.commit = "f" * 40
    ran = pull(hub)
    assert ran.code == 0
    assert f"now has commit {'f' * 40}" in ran.err and COMMIT in ran.err
    assert resolve_model(NAME).detail["revision"] == COMMIT
    hub.url = "http://127.0.0.1:9"
    without = pull(hub)
    assert without.code == 0 and "now has commit" not in without.err
