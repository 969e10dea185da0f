"""Hostile models, archives and adapters: refused in words, in bounded memory, before anything of them is put to use."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

from mta_cli.engine.model.checkpoint_files import check_folder, require_config_fits_weights
from mta_cli.engine.model.safetensors_header import MAX_HEADER, MAX_TENSORS, read_safetensors_header
from mta_cli.errors import BadInput, IntegrityFault, MtaError, NotFound
from mta_cli.pipeline.models.download import choose_files
from mta_cli.pipeline.models.installed import list_models
from mta_cli.pipeline.models.manifest import MANIFEST, read_manifest
from mta_cli.pipeline.models.pull import pull_model
from tests.trust.limits import run_bounded
from tests.trust.tally import tally


@pytest.fixture
def copy(tiny_base_path: Path, tmp_path: Path) -> Path:
    """A model's folder to spoil."""
    return Path(shutil.copytree(tiny_base_path, tmp_path / "copy"))


class Shot:
    """Says so when it is unpickled."""

    fired = False

    def __reduce__(self) -> Any:
        return setattr, (Shot, "fired", True)


def archive(*members: tuple[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for name, content in members:
            opened.writestr(name, content)
    return made.getvalue()


PICKLES = {f"protocol {n}": pickle.dumps([Shot(), {"a": [1, 2]}], n) for n in range(6)} | {
    "torch": archive(("archive/data.pkl", pickle.dumps(Shot())), ("archive/version", b"3")),
    "upper case": archive(("archive/DATA.PKL", pickle.dumps(Shot()))),
}
NAMES = (
    "model.safetensors",
    "extra.safetensors",
    "config.json",
    "notes.txt",
    "vocab",
    "sub/tokenizer.model",
    "a.bin",
    "template.jinja",
    "1_Pooling/x.dat",
)


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("name", NAMES)
def test_a_pickle_under_any_name_is_refused_unopened(copy: Path, models_root: Path, kind: str, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(PICKLES[kind])
    with pytest.raises(BadInput, match=Path(name).name):
        list(pull_model(str(copy), as_name="mine"))
    assert not Shot.fired and list_models() == []
    tally("pickles under neutral names", "refused unopened")


def test_an_adapter_is_no_model_and_its_patterns_are_not_tried(tmp_path: Path, models_root: Path) -> None:
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "adapter_model.safetensors")
    bomb = {"peft_type": "LORA", "r": 10**9, "target_modules": "(a+)+$" * 50, "rank_pattern": {"(x|x)*y": 1}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(bomb))
    with pytest.raises(BadInput, match="this is an adapter, not a base"):
        list(pull_model(str(tmp_path), as_name="mine"))
    with pytest.raises(BadInput, match="is an adapter"):
        choose_files("hf:org/x", ["adapter_config.json", "adapter_model.safetensors"])
    tally("adapters offered as models", "refused, patterns untried", 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_what_is_no_plain_file_is_not_waited_for(copy: Path, kind: str) -> None:
    (copy / "config.json").unlink()
    if kind == "pipe":
        os.mkfifo(copy / "config.json")
    elif kind == "endless":
        (copy / "config.json").symlink_to("/dev/zero")
    else:
        (copy / "config.json").mkdir()
    with pytest.raises(MtaError, match=r"config\.json"):
        check_folder(copy)
    tally("pipes, devices and folders as files", "refused at once")


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
    "escape in a name": ({"a\x1b[2J": entry(0, 8)}, 8),
    "C1 in a name": ({"a\x9b2J": entry(0, 8)}, 8),
    "path for a name": ({"../../etc/passwd": entry(0, 8)}, 8),
    "absolute name": ({"/etc/passwd": entry(0, 8)}, 8),
    "long name": ({"a" * 10_000: entry(0, 8)}, 8),
    "no name": ({"": entry(0, 8)}, 8),
    "twice": (b'{"a": %b, "a": %b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), 8),
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
    with pytest.raises(BadInput, match=r"model\.safetensors") as caught:
        check_folder(copy)
    assert caught.value.message.isprintable()
    tally("safetensors headers that lie", "refused in words")


def test_huge_headers_are_refused_in_bounded_memory(tmp_path: Path) -> None:
    """300,000 tensors, a header beyond the limit, one that is all brackets: in 1.5 GB of address space."""
    nothing = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    with_header(
        tmp_path / "many", json.dumps({f"t{n}": nothing for n in range(240_000)}, separators=(",", ":")).encode()
    )
    with_header(tmp_path / "more", json.dumps({f"t{n}": nothing for n in range(300_000)}).encode())
    with_header(tmp_path / "brackets", b'{"a":[' + b"[]," * (MAX_HEADER // 3 - 9) + b"[]]}")
    with_header(tmp_path / "deep", b"[" * 1_000_000)
    (tmp_path / "said").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    names = ["many", "more", "brackets", "deep", "said"]
    source = (
        "from pathlib import Path\nfrom mta_cli.engine.model.safetensors_header import read_safetensors_header\n"
        f"for name in {names!r}:\n    attempt(name, lambda: read_safetensors_header(Path({str(tmp_path)!r}) / name))\n"
    )
    ran = run_bounded(source, megabytes=1536, seconds=30)
    assert ran.code == 0, ran.err[-2000:]
    assert list(ran.said) == names and all(said.startswith("refused BadInput") for said in ran.said.values())
    assert f"240,000 tensors; the most is {MAX_TENSORS:,}" in ran.said["many"]
    ran.count("safetensors headers of absurd size")


SIZES = {
    "layers": {"num_hidden_layers": 10**6},
    "no layers": {"num_hidden_layers": 0},
    "minus": {"num_hidden_layers": -1},
    "vocabulary": {"vocab_size": 10**12},
    "width": {"hidden_size": 10**9},
    "inner": {"intermediate_size": 10**12},
    "heads": {"num_attention_heads": 10**9},
    "head width": {"head_dim": 10**10},
    "beyond": {"vocab_size": 10**400},
    "text": {"num_hidden_layers": "1e9"},
    "list": {"hidden_size": [64]},
    "nested": {"text_config": {"vocab_size": 10**15, "hidden_size": 64}},
    "another": {"model_type": "mixtral", "hidden_size": None, "num_hidden_layers": None},
    "rope": {"rope_parameters": {"rope_type": "yarn", "factor": 1e300, "rope_theta": -1}},
    "act": {"hidden_act": "../x"},
    "pattern": {"quantization_config": {"quant_method": "compressed-tensors", "ignore": ["re:(a+)+$"]}},
    "code": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    "escape": {"hidden_act": "\x1b]0;x\x07"},
}


def test_configurations_beyond_reason_are_refused_before_anything_is_made(tiny_base_path: Path, tmp_path: Path) -> None:
    """All of them in 6 GB of address space, most of which is libraries', and two minutes of computing."""
    good = json.loads((tiny_base_path / "config.json").read_text())
    (tmp_path / "changes.json").write_text(
        json.dumps({key.replace(" ", "-"): good | new for key, new in SIZES.items()})
    )
    source = (
        "import json, shutil\nfrom pathlib import Path\nfrom mta_cli.engine.model.load import load_base\n"
        f"root, good = Path({str(tmp_path)!r}), {str(tiny_base_path)!r}\n"
        "for label, config in json.loads((root / 'changes.json').read_text()).items():\n"
        "    path = Path(shutil.copytree(good, root / label))\n"
        "    (path / 'config.json').write_text(json.dumps(config))\n"
        "    attempt(label, lambda: load_base(path, name=label, fingerprint='x', device='cpu', dtype='float32'))\n"
    )
    ran = run_bounded(source, megabytes=6144, seconds=120)
    assert ran.code == 0, ran.err[-2000:]
    assert list(ran.said) == [key.replace(" ", "-") for key in SIZES]
    for label, said in ran.said.items():
        assert said.startswith(("refused BadInput", "refused IntegrityFault")), (label, said)
        assert "MemoryError" not in said and "allocate" not in said, (label, said)
    ran.count("configurations of absurd size")


def test_sizes_that_real_models_have_are_let_through(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    require_config_fits_weights(copy, config)
    require_config_fits_weights(
        copy, {**config, "max_position_embeddings": 10**7, "rope_theta": 10**9, "num_hidden_layers": 3}
    )
    require_config_fits_weights(
        copy, {**config, "num_experts": 8, "moe_intermediate_size": 64, "num_key_value_heads": 4}
    )
    promises = {"vocab_size": 10**6, "intermediate_size": 2**20, "head_dim": 2**20, "num_key_value_heads": 2**20}
    for name, value in {**promises, "num_experts": 2**20, "moe_intermediate_size": 2**20}.items():
        with pytest.raises(BadInput, match=r"more than the weights hold"):
            require_config_fits_weights(copy, {**config, name: value})
    with pytest.raises(BadInput, match=r"1,001 layers, and the weights are"):
        require_config_fits_weights(copy, {"num_hidden_layers": 1001})


@pytest.mark.parametrize("pattern", ["(a|aa|a)+$", "(a+)+$"])
def test_a_tokenizer_whose_pattern_explodes_is_stopped(copy: Path, pattern: str) -> None:
    """The library gives up after so many tries; what it raises then is no plain exception."""
    from mta_cli.engine.model.checkpoint_files import load_errors_as_bad_input
    from tests.tiny import byte_tokenizer

    whole = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    whole["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    source = (
        "import json, sys\nfrom tokenizers import Tokenizer\n"
        "from mta_cli.engine.model.checkpoint_files import load_errors_as_bad_input\n"
        f"made = Tokenizer.from_str({json.dumps(json.dumps(whole))})\n"
        "def read():\n    with load_errors_as_bad_input('it'):\n        made.encode('a' * 5000 + '!')\n"
        "attempt('it', read)\n"
    )
    ran = run_bounded(source, megabytes=2048, seconds=20)
    assert ran.code == 0 and "retry-limit" in ran.said["it"], ran
    ran.count("tokenizers' patterns that explode")
    with pytest.raises(KeyboardInterrupt), load_errors_as_bad_input("it"):
        raise KeyboardInterrupt


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
def test_any_header_is_refused_or_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    good = save({"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.float16)}, metadata={"format": "pt"})
    raw = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 33))] = data.draw(st.sampled_from(CHARACTERS))
    path.write_bytes(bytes(raw))
    try:
        found = read_safetensors_header(path)
    except BadInput:
        tally("safetensors headers by hypothesis", "refused in words")
        return
    try:
        with safe_open(path, "pt") as opened:
            assert set(opened.keys()) == set(found.tensors)
        tally("safetensors headers by hypothesis", "read as the library reads them")
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what was accepted: {error}") from error


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
