"""LoRA factors in one block of memory: what lies where, and how an adapter's file is mapped rather than read.

Knows the format of the files; neither scales, placements nor models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_HEADER = 2**24  # bytes; a model of 20,000 adapted modules needs a quarter of it

_METADATA = '{"__metadata__":'
_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_.]+)\.lora_([AB])\.weight")
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class FactorOffsets(NamedTuple):
    """Where a module's factors lie in a block: `A [rank, inputs]` from number `a` on, `B [outputs, rank]` from `b`."""

    path: str
    rank: int
    inputs: int
    outputs: int
    a_offset: int
    b_offset: int


@dataclass(frozen=True)
class BlockLayout:
    """What lies where in a block of `numbers` numbers of one type."""

    dtype: torch.dtype
    num_elements: int
    module_offsets: tuple[FactorOffsets, ...]

    @cached_property
    def offsets_by_path(self) -> dict[str, FactorOffsets]:
        """The places by module path."""
        return {place.path: place for place in self.module_offsets}


class FactorBlock(Mapping[str, tuple[Tensor, Tensor]]):
    """Factors by module path, as views of one flat tensor on the CPU that are made when they are asked for."""

    def __init__(self, numbers: Tensor, layout: BlockLayout) -> None:
        self.numbers, self.layout = numbers, layout

    @classmethod
    def from_factors(cls, factors: Mapping[str, tuple[Tensor, Tensor]]) -> FactorBlock:
        """`factors` as a block: itself when it is one, else a copy. Factors of several types become the widest."""
        if isinstance(factors, FactorBlock):
            return factors
        places, end = [], 0
        for path, (a, b) in factors.items():
            places.append(FactorOffsets(path, a.shape[0], a.shape[1], b.shape[0], end, end + a.numel()))
            end += a.numel() + b.numel()
        numbers = torch.cat([factor.detach().cpu().reshape(-1) for pair in factors.values() for factor in pair])
        return cls(numbers, BlockLayout(numbers.dtype, end, tuple(places)))

    def to(self, dtype: torch.dtype) -> FactorBlock:
        """The same factors in another type."""
        if dtype == self.layout.dtype:
            return self
        return FactorBlock(self.numbers.to(dtype), replace(self.layout, dtype=dtype))

    def __getitem__(self, path: str) -> tuple[Tensor, Tensor]:
        _, rank, inputs, outputs, a, b = self.layout.offsets_by_path[path]
        first = self.numbers[a : a + rank * inputs].view(rank, inputs)
        return first, self.numbers[b : b + outputs * rank].view(outputs, rank)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.offsets_by_path)

    def __len__(self) -> int:
        return len(self.layout.module_offsets)


def read_adapter_file(path: Path) -> tuple[dict[str, Any], FactorBlock]:
    """The metadata and the factors of a safetensors file under PEFT's names. The numbers stay in the file, mapped.

    Trusts nothing: raises OSError, or ValueError, KeyError, TypeError or RuntimeError when the file is anything else.
    """
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{size} bytes are no safetensors file")
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    if start > min(size, 8 + MAX_HEADER):
        raise ValueError(f"its header of {start - 8:,} bytes is longer than the file or than {MAX_HEADER:,} bytes")
    metadata, tensors = _split(data[8:start].tobytes().decode())
    layout = _layout(tensors)
    if start % layout.dtype.itemsize or start + layout.num_elements * layout.dtype.itemsize != size:
        raise ValueError(f"{size:,} bytes are not what its header promises")
    numbers = torch.from_numpy(data[start:]).view(layout.dtype)
    return metadata, FactorBlock(numbers, layout)


def _split(header: str) -> tuple[dict[str, Any], str]:
    """The metadata, which differ from file to file, and the JSON about the tensors, which a bank's files share."""
    if header.startswith(_METADATA + "{"):
        metadata, end = json.JSONDecoder().raw_decode(header, len(_METADATA))
        if header.startswith(',"', end):
            return metadata, "{" + header[end + 1 :]
    document = json.loads(header)
    return document.pop("__metadata__", {}), json.dumps(document)


@lru_cache(maxsize=32)
def _layout(tensors: str) -> BlockLayout:
    """What the JSON about the tensors says, when they are pairs of factors that fill the rest of the file gaplessly."""
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    entries, end = json.loads(tensors), 0
    dtypes = {entry["dtype"] for entry in entries.values()} or {"F16"}
    if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
        raise ValueError(f"its tensors are not of one type among {', '.join(_DTYPES)}")
    dtype = _DTYPES[dtypes.pop()]
    for key, entry in sorted(entries.items(), key=lambda pair: pair[1]["data_offsets"]):
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"it holds a tensor that is no LoRA factor: {key[:80]!r}")
        rows, columns = entry["shape"]
        begin, after = entry["data_offsets"]
        whole = all(type(number) is int for number in (rows, columns, begin, after)) and min(rows, columns) > 0
        if not whole or begin != end * dtype.itemsize or after != begin + rows * columns * dtype.itemsize:
            raise ValueError(f"{match[1]} is not where and as large as its header says")
        found.setdefault(match[1], {})[match[2]] = (rows, columns, end)
        end += rows * columns
    return BlockLayout(dtype, end, tuple(_factor_offsets(path, pair) for path, pair in found.items()))


def _factor_offsets(path: str, pair: dict[str, tuple[int, int, int]]) -> FactorOffsets:
    if len(pair) < 2:
        raise ValueError(f"{path} has one factor only")
    (rank, inputs, a), (outputs, columns, b) = pair["A"], pair["B"]
    if rank != columns:
        raise ValueError(f"factors of {path} do not fit: {(rank, inputs)}, {(outputs, columns)}")
    return FactorOffsets(path, rank, inputs, outputs, a, b)
