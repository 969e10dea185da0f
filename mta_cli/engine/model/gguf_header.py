"""The header of a GGUF file, walked before the library reads it, which trusts every count in it. Knows no model."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

from mta_cli.errors import BadInput

MAX_ENTRIES = 100_000  # of facts, and of tensors
MAX_STRING = 16 * 2**20  # bytes
GGUF_TYPE_BYTES = {
    0: 1,
    1: 1,
    2: 2,
    3: 2,
    4: 4,
    5: 4,
    6: 4,
    7: 1,
    10: 8,
    11: 8,
    12: 8,
}  # bytes by GGUF's numbers of types
GGUF_TYPE_STRING, GGUF_TYPE_ARRAY = 8, 9


def check_gguf(file: Path) -> None:
    """Raises BadInput unless the header's counts and lengths fit into the file."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            magic, version, tensors, facts = struct.unpack("<4sIQQ", stream.read(24))
            if magic != b"GGUF" or version not in (2, 3) or max(tensors, facts) > MAX_ENTRIES:
                raise ValueError("its first bytes are not GGUF's")
            for _ in range(facts):
                _skip_string(stream)
                _skip_value(stream, _read_int(stream, "<I"), size)
            for _ in range(tensors):
                _skip_string(stream)
                dimensions = _read_int(stream, "<I")
                if not 1 <= dimensions <= 4:
                    raise ValueError(f"a tensor has {dimensions} dimensions")
                if math.prod(_read_int(stream, "<Q") for _ in range(dimensions)) > 8 * size:
                    raise ValueError("a tensor is larger than the file")
                stream.seek(12, 1)  # its type and where it lies, which the library looks up
            if stream.tell() > size:
                raise ValueError("it ends in its header")
    except (struct.error, ValueError, OverflowError) as error:
        raise BadInput(f"{file.name} cannot be read as GGUF: {error}") from error


def _read_int(stream: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def _skip_string(stream: BinaryIO) -> None:
    length = _read_int(stream, "<Q")
    if length > MAX_STRING or len(stream.read(length)) < length:
        raise ValueError("a text is longer than the file")


def _skip_value(stream: BinaryIO, kind: int, size: int) -> None:
    count = 1
    if kind == GGUF_TYPE_ARRAY:
        kind, count = _read_int(stream, "<I"), _read_int(stream, "<Q")
    least = 8 if kind == GGUF_TYPE_STRING else GGUF_TYPE_BYTES.get(kind, 0)
    if not least or count * least > size:
        raise ValueError("a value is of no known type, or longer than the file")
    if kind == GGUF_TYPE_STRING:
        for _ in range(count):
            _skip_string(stream)
    else:
        stream.seek(count * least, 1)
