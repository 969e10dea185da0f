"""What a model's folder needs, and what it may not hold: safetensors, no adapter, nothing damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mta_cli.engine.model.checkpoint_files import check_folder, load_errors_as_bad_input, parameter_count, weight_dtypes
from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound


@pytest.fixture
def copy(tiny_base_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))


def test_the_tiny_models_are_fine(tiny_base_path: Path, tiny_embedder_path: Path) -> None:
    check_folder(tiny_base_path)
    check_folder(tiny_embedder_path)
    assert parameter_count(tiny_base_path) < 200_000
    assert weight_dtypes(tiny_base_path) == ["F32"]


def test_other_weights_beside_safetensors_are_left_alone(copy: Path) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "model.gguf", "modeling_own.py"):
        (copy / name).write_bytes(b"x")
    check_folder(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no safetensors weights"):
        check_folder(copy)


def test_an_embedders_module_without_safetensors_is_refused(tiny_embedder_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_embedder_path, tmp_path / "copy"))
    (copy / "pytorch_model.bin").write_bytes(b"x")
    check_folder(copy)
    (copy / "2_Dense").mkdir()
    (copy / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"2_Dense/pytorch_model\.bin"):
        check_folder(copy)


def test_an_adapter_is_not_a_base(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="adapter, not a base"):
        check_folder(copy)


def test_sentence_modules_from_elsewhere_are_refused(tiny_embedder_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_embedder_path, tmp_path / "copy"))
    (copy / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "os.system"}]))
    with pytest.raises(BadInput, match=r"os\.system"):
        check_folder(copy)


def test_a_shard_outside_the_folder_is_refused(copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(BadInput, match="elsewhere"):
        check_folder(copy)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(copy: Path, keep: int) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(IntegrityFault, match=r"model\.safetensors is not a safetensors file, or is damaged"):
        check_folder(copy)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{{",
        '{"a": 1}',
        '{"a": {"data_offsets": [0, 1]}}',
        '{"a": {"data_offsets": [0, 1], "dtype": 1}}',
        "[" * 9000,
    ],
)
def test_headers_that_are_none(copy: Path, header: str) -> None:
    raw = header.encode()
    (copy / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"x")
    with pytest.raises(IntegrityFault, match=r"model\.safetensors"):
        check_folder(copy)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\xff", "[" * 100_000])
def test_a_config_that_is_none(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(BadInput, match=r"config\.json"):
        check_folder(copy)


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_a_folder_without_its_heart(copy: Path, gone: str) -> None:
    (copy / gone).unlink()
    with pytest.raises(MtaError, match=r"config\.json|no safetensors"):
        check_folder(copy)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        check_folder(tmp_path / "none")


def test_all_faults_are_listed(copy: Path) -> None:
    for name in ("a", "b", "c"):
        (copy / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": {name: "../x"}}))
    with pytest.raises(BadInput) as caught:
        check_folder(copy)
    assert len(caught.value.faults) == 3


def test_what_a_library_raises_becomes_one_line() -> None:
    class Panic(BaseException):
        """As compiled code raises them."""

    with pytest.raises(BadInput, match=r"^it fails: Panic: first$"), load_errors_as_bad_input("it fails"):
        raise Panic("first\nsecond")
    with pytest.raises(KeyboardInterrupt), load_errors_as_bad_input("it fails"):
        raise KeyboardInterrupt
