"""Models with pickles and own code, which are not run, and damaged ones, which are refused in words before any use."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from mta_cli.engine.model.checkpoint_files import check_folder
from mta_cli.engine.model.load import load_base, load_tokenizer
from mta_cli.engine.model.safetensors_header import read_safetensors_header
from mta_cli.engine.text.tokenizer import PromptTokenizer
from mta_cli.errors import BadInput, IntegrityFault, NotFound
from mta_cli.pipeline.models.download import choose_files
from mta_cli.pipeline.models.installed import list_models
from mta_cli.pipeline.models.manifest import MANIFEST, read_manifest
from mta_cli.pipeline.models.pull import pull_model
from tests.trust.tally import tally


@pytest.fixture
def copy(tiny_base_path: Path, tmp_path: Path) -> Path:
    """A model's folder to spoil."""
    return Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))


def test_a_tokenizer_that_panics_is_one_line(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A panic of Rust is no Exception."""
    path = copy / "tokenizer.json"
    content = json.loads(path.read_bytes())
    split = {"type": "Split", "pattern": {"Regex": "^(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    parts = [split, *([content["pre_tokenizer"]] if content["pre_tokenizer"] else [])]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    path.write_text(json.dumps(content))
    tokenizer = PromptTokenizer(load_tokenizer(copy))
    assert tokenizer.encode_user_text("a cat")
    with pytest.raises(BadInput, match="The tokenizer of this base failed: PanicException: Onig") as told:
        tokenizer.encode_user_text("a" * 60 + "!")
    assert "\n" not in str(told.value)
    capfd.readouterr()  # Rust's own lines


class Shot:
    """Says so when it is unpickled."""

    fired = False

    def __reduce__(self) -> Any:
        return setattr, (Shot, "fired", True)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["pytorch_model.bin", "extra.pt", "vocab", "sub/tokenizer.model", "1_Pooling/x.dat"])
def test_a_pickle_beside_the_weights_is_never_loaded(copy: Path, protocol: int, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(pickle.dumps([Shot(), {"a": [1, 2]}], protocol))
    load_base(copy, name="m", fingerprint="x", device="cpu", dtype="float32")
    assert not Shot.fired
    tally("pickles beside safetensors", "not loaded")


@pytest.mark.parametrize("name", ["model.safetensors", "extra.safetensors", "config.json"])
def test_a_pickle_in_place_of_a_models_file_is_refused(copy: Path, models_root: Path, name: str) -> None:
    (copy / name).write_bytes(pickle.dumps(Shot()))
    with pytest.raises((BadInput, IntegrityFault), match=name):
        list(pull_model(str(copy), as_name="mine"))
    assert not Shot.fired and list_models() == []
    tally("pickles under names of a model", "refused unopened")


def test_a_models_own_code_is_not_run(copy: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (copy / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Model: ...\n")
    for file, name in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps({**content, "auto_map": {name: "own.Model"}}))
    load_base(copy, name="m", fingerprint="x", device="cpu", dtype="float32")
    (copy / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Model"}}))
    with pytest.raises(BadInput, match="cannot be loaded as a causal language model"):
        load_base(copy, name="m", fingerprint="x", device="cpu", dtype="float32")
    assert not ran.exists()
    tally("own code of models", "not run", 2)


def test_an_adapter_is_no_model_and_its_patterns_are_not_tried(tmp_path: Path, models_root: Path) -> None:
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    bomb = {"peft_type": "LORA", "r": 10**9, "target_modules": "(a+)+$" * 50, "rank_pattern": {"(x|x)*y": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(bomb))
    with pytest.raises(BadInput, match="this is an adapter, not a base"):
        list(pull_model(str(tmp_path), as_name="mine"))
    with pytest.raises(BadInput, match="is an adapter"):
        choose_files("hf:org/x", ["adapter_config.json", "adapter_model.safetensors"])
    tally("adapters offered as models", "refused, patterns untried", 2)


def with_header(path: Path, header: Any, body: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[Any, int]] = {
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12),
    "same place": ({"a": entry(0, 8), "b": entry(0, 8)}, 8),
    "gap": ({"a": entry(0, 8), "b": entry(12, 20)}, 20),
    "gap at the start": ({"a": entry(4, 8)}, 8),
    "bytes left over": ({"a": entry(0, 8)}, 12),
    "promises more": ({"a": entry(0, 2**40)}, 8),
    "shape lies": ({"a": entry(0, 8, [10**6, 10**6])}, 8),
    "shape overflows": ({"a": entry(0, 8, [2**63, 2**63])}, 8),
    "negative": ({"a": entry(0, 8, [-1, -2])}, 8),
    "backwards": ({"a": entry(8, 0)}, 8),
    "type lies": ({"a": entry(0, 8, [2], "F64")}, 8),
    "no type": ({"a": entry(0, 8, [2], "PICKLE")}, 8),
    "type is a list": ({"a": entry(0, 8, [2], ["F32"])}, 8),
    "fractions": ({"a": entry(0, 8, [2.0])}, 8),
    "metadata is a list": ({"__metadata__": [], "a": entry(0, 8)}, 8),
    "metadata holds numbers": ({"__metadata__": {"a": 1}, "a": entry(0, 8)}, 8),
    "half a surrogate pair": ({"__metadata__": {"a": "\ud800"}, "a": entry(0, 8)}, 8),
    "half a pair for a name": ({"__metadata__": {"\ud800": "a"}, "a": entry(0, 8)}, 8),
    "utf-16": (json.dumps({"a": entry(0, 8)}).encode("utf-16"), 8),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_lie_are_refused(copy: Path, kind: str) -> None:
    header, size = HEADERS[kind]
    with_header(copy / "model.safetensors", header, b"\0" * size)
    with pytest.raises(IntegrityFault, match=r"model\.safetensors") as caught:
        check_folder(copy)
    assert caught.value.message.isprintable()
    tally("safetensors headers that lie", "refused in words")


def test_names_of_tensors_do_not_reach_the_terminal(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["a\x1b[2J"] = weights.pop("model.norm.weight")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IntegrityFault, match="weights are incomplete"):
        load_base(copy, name="m", fingerprint="x", device="cpu", dtype="float32")
    assert "\x1b" not in "".join(capfd.readouterr())


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "no layers": {"num_hidden_layers": 0},
    "minus": {"num_hidden_layers": -1},
    "one more": {"num_hidden_layers": 3},
    "width": {"hidden_size": 128},
    "text": {"num_hidden_layers": "2"},
    "list": {"hidden_size": [64]},
    "family": {"model_type": "nothing"},
    "act": {"hidden_act": "../x"},
    "escape": {"hidden_act": "\x1b]0;x\x07"},
}


@pytest.mark.parametrize("kind", CONFIGURATIONS)
def test_configurations_that_do_not_fit_are_refused(copy: Path, kind: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | CONFIGURATIONS[kind]))
    with pytest.raises((BadInput, IntegrityFault)) as caught:
        load_base(copy, name="m", fingerprint="x", device="cpu", dtype="float32")
    assert caught.value.message.isprintable()
    tally("configurations that do not fit", "refused in words")


def test_tokens_with_keys_of_their_own_are_refused_when_a_model_is_met(copy: Path, models_root: Path) -> None:
    whole = json.loads((copy / "tokenizer.json").read_text())
    whole["added_tokens"][0]["\x1b]52;c;eA==\x07"] = 1
    (copy / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(BadInput, match="unknown key") as caught:
        list(pull_model(str(copy), as_name="mine"))
    assert caught.value.message.isprintable() and list_models() == []
    tally("keys of their own in a tokenizer", "refused in words")


CHARACTERS = b'0123456789{}[]",:AFB.w-e \xff\x1b'


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_header_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    good = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, metadata={"format": "pt"})
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 33))] = data.draw(st.sampled_from(CHARACTERS))
    path.write_bytes(bytes(raw))
    try:
        found = read_safetensors_header(path)
    except IntegrityFault:
        tally("safetensors headers by hypothesis", "refused in words")
        return
    with safe_open(path, "pt") as opened:
        names = opened.keys()
        shapes = {name: opened.get_slice(name).get_shape() for name in names}
    assert {name: entry["shape"] for name, entry in found.tensors.items()} == shapes
    tally("safetensors headers by hypothesis", "read as the library reads them")


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


@settings(deadline=None)
@given(VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_any_manifest(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / MANIFEST).write_bytes(content)
    try:
        found = read_manifest(folder)
    except IntegrityFault:
        tally("manifests by hypothesis", "refused in words")
        return
    assert found is not None and isinstance(found["name"], str)
    tally("manifests by hypothesis", "read")


def test_a_missing_model_is_still_not_found(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("V\nnothing here\n.")
    with pytest.raises(NotFound, match=r"no config\.json"):
        check_folder(tmp_path)
