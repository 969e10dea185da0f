"""Reading an adapter's file: LoRA factors under PEFT's key names."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from mta_cli.engine.model.safetensors_header import read_safetensors_header
from mta_cli.errors import BadInput

FACTOR_DTYPES = ("F16", "BF16", "F32")
_FACTOR_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_.]+)\.lora_([AB])\.weight")


def read_adapter_file(path: Path) -> tuple[dict[str, str], dict[str, tuple[Tensor, Tensor]]]:
    """The metadata of a safetensors file, and its factors `A [rank, in]`, `B [out, rank]` by module path.

    The file is memory-mapped. Raises IntegrityFault if it is damaged, BadInput if it cannot be read or contains
    anything but pairs of factors of one dtype, and FileNotFoundError if it does not exist.
    """
    header = read_safetensors_header(path)
    dtypes = {entry["dtype"] for entry in header.tensors.values()}
    if len(dtypes) > 1 or not dtypes <= set(FACTOR_DTYPES):
        raise BadInput(f"all its tensors must have one number format, out of {', '.join(FACTOR_DTYPES)}")
    keys: dict[str, dict[str, str]] = {}  # by module path, then by A or B
    for key in sorted(header.tensors, key=lambda name: header.tensors[name]["data_offsets"]):
        match = _FACTOR_KEY.fullmatch(key)
        if match is None:
            raise BadInput(f"one of its tensors is not a LoRA factor: {key[:80]!r}")
        keys.setdefault(match[1], {})[match[2]] = key
    for module, pair in keys.items():
        if len(pair) < 2:
            raise BadInput(f"{module} has only one of the two LoRA factors, A and B")
        a, b = (header.tensors[pair[half]]["shape"] for half in ("A", "B"))
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not all((*a, *b)):
            found = f"A {a} must be [rank, in], B {b} [out, rank]"
            raise BadInput(f"the LoRA factors of {module} do not fit together: {found}")
    tensors = load_file(path)
    return header.metadata, {module: (tensors[pair["A"]], tensors[pair["B"]]) for module, pair in keys.items()}
