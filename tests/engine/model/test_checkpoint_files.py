"""What a model's folder may not hold: pickles under any name, code, adapters, GGUF files, damaged weights."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest

from mta_cli.engine.model.checkpoint_files import check_folder, load_errors_as_bad_input, parameter_count, weight_dtypes
from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound


@pytest.fixture
def copy(tiny_base_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))


def zipped_pickle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


def test_the_tiny_models_are_fine(tiny_base_path: Path, tiny_embedder_path: Path) -> None:
    check_folder(tiny_base_path)
    check_folder(tiny_embedder_path)
    assert parameter_count(tiny_base_path) < 200_000
    assert weight_dtypes(tiny_base_path) == ["F32"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", b"anything"),
        ("sub/weights.PT", b"anything"),
        ("old.ckpt", b""),
        ("notes.txt", pickle.dumps([1, 2])),
        ("weights.dat", zipped_pickle()),
        ("model-00002.safetensors", pickle.dumps([1, 2])),
    ],
    ids=("bin", "folder", "empty", "pickle", "zip", "safetensors"),
)
def test_pickles_are_refused_under_any_name(copy: Path, name: str, content: bytes) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(content)
    with pytest.raises(BadInput, match=Path(name).name) as caught:
        check_folder(copy)
    assert "safetensors" in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("key", ["auto_map", "trust_remote_code"])
def test_a_model_that_brings_code_is_refused(copy: Path, file: str, key: str) -> None:
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**content, key: {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(BadInput, match=key):
        check_folder(copy)


def test_an_unpinned_gguf_is_refused(copy: Path) -> None:
    (copy / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadInput, match="not pinned"):
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
    for name in ("a.bin", "b.pt", "c.gguf"):
        (copy / name).write_bytes(b"x")
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
