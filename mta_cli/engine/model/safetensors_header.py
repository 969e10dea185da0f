"""Reads the header of a safetensors file, after the safetensors library has checked it against the file."""

from __future__ import annotations

import json
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from mta_cli.errors import BadInput, IntegrityFault, system_reason


class SafetensorsHeader(NamedTuple):
    """Tensors by name (with `dtype`, `shape` and `data_offsets` as in the JSON), and the file's metadata."""

    tensors: dict[str, dict[str, Any]]
    metadata: dict[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """The header of a safetensors file.

    Raises IntegrityFault if the header is invalid or the tensors do not fill the rest of the file without gaps,
    FileNotFoundError if there is no such file, and BadInput if it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    with open_to_read(path) as opened:
        try:
            with safe_open(path, "np"):  # checks the whole header, and reads no tensor
                pass
        except SafetensorError as error:
            raise IntegrityFault(
                f"{path} is not a safetensors file, or is damaged: {error}", hint="pull or copy it again"
            ) from error
        tensors = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    metadata = tensors.pop("__metadata__", None) or {}
    return SafetensorsHeader(tensors, metadata)


def open_to_read(path: Path) -> BufferedReader:
    """Opens a model's file to read bytes. Raises FileNotFoundError without the file, BadInput if it is unreadable."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {system_reason(error)}.", hint="check its permissions") from error
