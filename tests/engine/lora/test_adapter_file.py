"""Adapter files: the same numbers as in the file, and no file is trusted."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file

from mta_cli.engine.lora.adapter import LoraWeights, Placement
from mta_cli.engine.lora.adapter_file import read_adapter_file
from mta_cli.errors import BadInput, IntegrityFault

NAME = "base_model.model.model.layers.{}.mlp.up_proj.lora_{}.weight"
MTA = {"mta": '{"scale": 1, "placement": "0-1/all"}'}


def tensors(dtype: torch.dtype = torch.float16, layers: int = 3) -> dict[str, torch.Tensor]:
    """Factors of a few modules; no two numbers are the same."""
    found, at = {}, 0
    for layer in range(layers):
        for half, shape in (("A", (2, 6)), ("B", (5, 2))):
            size = shape[0] * shape[1]
            found[NAME.format(layer, half)] = torch.arange(at, at + size, dtype=dtype).view(shape)
            at += size
    return found


def with_header(path: Path, header: dict[str, Any] | str, numbers: bytes = b"") -> Path:
    """A file of this header, filled up with spaces, and these bytes after it."""
    raw = (header if isinstance(header, str) else json.dumps(header)).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + numbers)
    return path


def honest(layers: int = 1) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a good file."""
    entries, numbers = {}, b""
    for key, tensor in tensors(layers=layers).items():
        raw = tensor.numpy().tobytes()
        entries[key] = {
            "dtype": "F16",
            "shape": list(tensor.shape),
            "data_offsets": [len(numbers), len(numbers) + len(raw)],
        }
        numbers += raw
    return {"__metadata__": MTA, **entries}, numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_factors_are_those_of_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    save_file(tensors(dtype), tmp_path / "a", metadata=MTA)
    metadata, factors = read_adapter_file(tmp_path / "a")
    plain = load_file(tmp_path / "a")
    assert metadata == MTA and len(factors) == 3 and 2 * len(factors) == len(plain)
    for path, pair in factors.items():
        for half, factor in zip("AB", pair, strict=True):
            assert torch.equal(factor, plain[f"base_model.model.{path}.lora_{half}.weight"])
            assert factor.dtype == dtype


def test_the_metadata_may_stand_anywhere(tmp_path: Path) -> None:
    header, numbers = honest()
    moved = {**{key: value for key, value in header.items() if key != "__metadata__"}, "__metadata__": MTA}
    assert read_adapter_file(with_header(tmp_path / "a", moved, numbers))[0] == MTA
    for first in (header, moved):
        text = json.dumps(first, indent=2)
        assert len(read_adapter_file(with_header(tmp_path / "b", text, numbers))[1]) == 1


def test_writing_into_a_factor_leaves_the_file_alone(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a", metadata=MTA)
    before = (tmp_path / "a").read_bytes()
    path = "model.layers.0.mlp.up_proj"
    _, factors = read_adapter_file(tmp_path / "a")
    factors[path][0].fill_(7)
    assert bool((factors[path][0] == 7).all())
    del factors
    assert (tmp_path / "a").read_bytes() == before


def damaged(change: str) -> tuple[dict[str, Any], bytes]:
    header, numbers = honest()
    a, b = (NAME.format(0, half) for half in "AB")
    match change:
        case "hole":
            header[b]["data_offsets"] = [offset + 2 for offset in header[b]["data_offsets"]]
            numbers += b"\0\0"
        case "overlap":
            header[b]["data_offsets"] = [0, 20]
        case "same place":
            header[b] = {**header[a], "shape": [6, 2]}
        case "beyond the file":
            header[b]["shape"] = [500, 2]
            header[b]["data_offsets"][1] = header[b]["data_offsets"][0] + 2000
        case "bytes left over":
            numbers += b"\0" * 8
        case "cut short":
            numbers = numbers[:-2]
        case "empty":
            header[a] = {"dtype": "F16", "shape": [0, 6], "data_offsets": [0, 0]}
        case "negative":
            header[a]["shape"] = [-2, -6]
        case "fractions":
            header[a]["shape"] = [2.0, 6.0]
        case "three dimensions":
            header[a]["shape"] = [2, 6, 1]
        case "no dimensions":
            header[a]["shape"] = []
        case "one factor":
            del header[b]
            numbers = numbers[:24]
        case "ranks":
            header[b]["shape"] = [2, 5]
        case "types":
            header[a]["dtype"] = "BF16"
        case "unknown type":
            header[a]["dtype"] = header[b]["dtype"] = "F8_E4M3"
        case "no type":
            del header[a]["dtype"]
        case "list for a type":
            header[a]["dtype"] = ["F16"]
        case "other name":
            header["../../etc/passwd"] = header.pop(a)
    return header, numbers


CHANGES = (
    "hole",
    "overlap",
    "same place",
    "beyond the file",
    "bytes left over",
    "cut short",
    "empty",
    "negative",
    "fractions",
    "three dimensions",
    "no dimensions",
    "one factor",
    "ranks",
    "types",
    "unknown type",
    "no type",
    "list for a type",
    "other name",
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_header_that_lies_is_refused(change: str, tmp_path: Path) -> None:
    header, numbers = damaged(change)
    with pytest.raises((BadInput, IntegrityFault)):
        read_adapter_file(with_header(tmp_path / "a", header, numbers))
    with pytest.raises(IntegrityFault, match="not an adapter of mta"):
        LoraWeights.from_file(tmp_path / "a")


@pytest.mark.parametrize("header", ["[]", '"x"', "7", "null", "{", "[" * 100_000, '{"__metadata__":' + "[" * 100_000])
def test_a_header_that_is_no_table_is_refused(header: str, tmp_path: Path) -> None:
    with pytest.raises((BadInput, IntegrityFault)):
        read_adapter_file(with_header(tmp_path / "a", header))
    with pytest.raises(IntegrityFault):
        LoraWeights.from_file(tmp_path / "a")


@pytest.mark.parametrize("length", [3, 2**40, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(IntegrityFault, match="damaged"):
        read_adapter_file(tmp_path / "a")


@pytest.mark.parametrize("scale", ["NaN", "Infinity", '"x"', "null", "[]"])
def test_a_scale_that_is_no_number_is_refused(scale: str, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a", metadata={"mta": f'{{"scale": {scale}, "placement": "0-1/all"}}'})
    with pytest.raises(IntegrityFault):
        LoraWeights.from_file(tmp_path / "a")


@pytest.mark.parametrize("metadata", [{}, {"mta": "7"}, {"mta": "{"}, {"other": "x"}])
def test_metadata_of_others_are_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "a", metadata=metadata or None)
    with pytest.raises(IntegrityFault):
        LoraWeights.from_file(tmp_path / "a")


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityFault, match="nowhere"):
        LoraWeights.from_file(tmp_path / "nowhere")


def test_weights_without_a_module_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(LoraWeights({}, 2.0, Placement(0, 1)).to_bytes({}))
    read = LoraWeights.from_file(tmp_path / "a")
    assert len(read.factors) == 0 and read.scale == 2.0 and read.rank == 0


@settings(deadline=None)
@given(st.data())
def test_what_is_accepted_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A good file with a few bytes of its header changed is refused, or holds what the library finds in it."""
    header, numbers = honest(layers=2)
    raw = bytearray(json.dumps(header, separators=(",", ":")).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from(b'0123456789{}[]",:AB.w-e '))
    raw += b" " * (-len(raw) % 8)
    path = tmp_path_factory.getbasetemp() / "changed"
    path.write_bytes(struct.pack("<Q", len(raw)) + bytes(raw) + numbers)
    try:
        _, factors = read_adapter_file(path)
    except (BadInput, IntegrityFault):
        return
    try:
        plain = load(path.read_bytes())
    except SafetensorError as error:
        raise AssertionError(f"the library refuses what was accepted: {error}") from error
    assert 2 * len(factors) == len(plain)
    for name, pair in factors.items():
        for half, factor in zip("AB", pair, strict=True):
            assert torch.equal(factor, plain[f"base_model.model.{name}.lora_{half}.weight"])
