"""The header of a safetensors file: which tensors it promises, checked before any library reads it."""

from __future__ import annotations

import json
import math
import struct
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from mta_cli.errors import BadInput, system_reason

MAX_HEADER = 16 * 2**20  # bytes; JSON of this size takes less than half a gigabyte, whatever stands in it
MAX_TENSORS = 200_000
MAX_NAME = 500  # characters
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}


class SafetensorsHeader(NamedTuple):
    """Tensors by name (`dtype`, `shape` and `data_offsets`, as JSON has them), and the file's metadata."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]


def read_safetensors_header(source: Path | bytes) -> SafetensorsHeader:
    """The header of a file, or of a file's bytes; its tensors fill the rest of the file without gaps.

    Raises BadInput for anything else, in words that do not name the file, and for a file that cannot be read.
    """
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    with BytesIO(source) if isinstance(source, bytes) else open_to_read(source) as opened:
        prefix = opened.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size - 8:
            raise BadInput("not a safetensors file, or a truncated one")
        if length > MAX_HEADER:
            raise BadInput(f"its header has {length:,} bytes; the most is {MAX_HEADER:,}")
        header = _parse_header(opened.read(length))
    if len(header.tensors) > MAX_TENSORS:
        raise BadInput(f"{len(header.tensors):,} tensors; the most is {MAX_TENSORS:,}")
    end = 0
    for name, entry in sorted(header.tensors.items(), key=lambda pair: pair[1]["data_offsets"]):
        end = _checked_tensor_end(name, entry, end)
    if length + 8 + end != size:
        raise BadInput(f"{size:,} bytes, where the header promises {length + 8 + end:,}")
    return header


def open_to_read(path: Path) -> BufferedReader:
    """The open file of a model. Raises BadInput where it is there and cannot be read."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {system_reason(error)}.", hint="check its permissions") from error


def _parse_header(raw: bytes) -> SafetensorsHeader:
    """A header whose parts have the right types."""
    try:
        tensors = json.loads(raw.decode(), object_pairs_hook=_reject_duplicate_keys)
        metadata = tensors.pop("__metadata__", {})
        json.dumps(tensors | {"": metadata}, ensure_ascii=False).encode()  # no half of a surrogate pair
        fine = all(isinstance(each, str) for pair in metadata.items() for each in pair)
        for entry in tensors.values():
            numbers = [*entry["shape"], *entry["data_offsets"]]
            fine &= entry["dtype"] in DTYPE_BITS and len(entry["data_offsets"]) == 2
            fine &= all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise BadInput("not a safetensors file: its header is not readable")
    return SafetensorsHeader(tensors, metadata)


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise ValueError("a name stands there twice")
    return keys


def _checked_tensor_end(name: str, entry: dict[str, Any], begin: int) -> int:
    """Where the tensor that should begin at byte `begin` of the numbers ends."""
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME or ".." in name or name.startswith("/"):
        raise BadInput(f"a tensor's name is unfit: {name[:80]!a}")
    start, end = entry["data_offsets"]
    bits = DTYPE_BITS[entry["dtype"]] * math.prod(entry["shape"])
    if start != begin or bits != 8 * (end - start):
        raise BadInput(f"{name[:80]!a} is not where and as large as its header says")
    return int(end)
