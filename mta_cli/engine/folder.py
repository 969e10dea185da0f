"""A model's folder on disk: what makes it safe to load, and the fingerprint it is known by.

Reads bytes and JSON only. Knows neither torch nor where folders come from; nothing in a folder is executed here.
"""

import hashlib
import json
import math
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mta_cli.errors import BadInput, NotFound

# What differs between two saves of one and the same model, or only says who wrote the file.
VOLATILE_KEYS = frozenset(
    {"_name_or_path", "_model_name_or_path", "transformers_version", "_commit_hash", "_attn_implementation"}
)
CODE_KEYS = ("auto_map", "trust_remote_code", "custom_pipelines")
PICKLE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".mar", ".npy", ".npz", ".h5"}
)
MAX_JSON = 64 * 2**20
MAX_HEADER = 64 * 2**20
MAX_TENSORS = 200_000


def read_json(path: Path) -> Any:
    """The parsed JSON of a small file inside a model's folder; BadInput in plain words when it cannot be read."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise BadInput(f"{path}: {path.stat().st_size:,} bytes of JSON; the most is {MAX_JSON:,}")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path.parent} has no {path.name}; it is not a model's folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({type(error).__name__})") from error


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of the folder as a dictionary."""
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise BadInput(f"{path / 'config.json'}: expected an object, found {type(config).__name__}")
    return config


def model_files(path: Path) -> list[Path]:
    """Every file of the folder, relative and sorted; hidden files and hidden folders are no part of a model."""
    found = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.parts))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of the folder, relative and sorted."""
    return [file for file in model_files(path) if file.suffix == ".safetensors"]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path, digests: dict[str, str] | None = None) -> str:
    """`sha256:…` over the configuration (without volatile keys) and the names and SHA-256 of the weight files.

    The modules of a sentence-transformers folder count as configuration. `digests` gives known SHA-256 by file name.
    """
    whole = hashlib.sha256()
    for relative in _config_files(path):
        content = read_json(path / relative)
        if isinstance(content, dict):
            content = {key: value for key, value in content.items() if key not in VOLATILE_KEYS}
        whole.update(f"{relative.as_posix()}\0{json.dumps(content, sort_keys=True)}\0".encode())
    for relative in weight_files(path):
        name = relative.as_posix()
        digest = (digests or {}).get(name) or sha256_file(path / relative)
        whole.update(f"{name}\0{digest}\0".encode())
    return f"sha256:{whole.hexdigest()}"


def check_folder(path: Path) -> None:
    """Raises unless the folder is a model of safetensors weights without pickles, own code or an adapter on top."""
    if not path.is_dir():
        raise NotFound(f"There is no model folder at {path}", hint="mta model list shows what is here")
    read_config(path)
    faults = [fault for relative in model_files(path) for fault in _file_faults(path, relative)]
    if (path / "adapter_config.json").exists():
        faults.append("adapter_config.json: this is an adapter, not a base")
    if not weight_files(path) and not faults:
        faults.append("no safetensors weights")
    if faults:
        raise BadInput(
            f"{path} cannot be used as a model: {faults[0]}",
            hint="mta reads safetensors only and runs no model code; convert the weights, or use a copy without them",
            faults=tuple(faults[:20]),
        )


def parameter_count(path: Path) -> int:
    """How many floating-point numbers the safetensors files hold, read from their headers."""
    return sum(math.prod(entry["shape"]) for entry in _tensors(path))


def weight_dtypes(path: Path) -> list[str]:
    """The floating-point formats of the stored tensors (`BF16`, `F32`, …), sorted."""
    return sorted({entry["dtype"] for entry in _tensors(path)})


def _tensors(path: Path) -> Iterator[dict[str, Any]]:
    for relative in weight_files(path):
        for name, entry in _safetensors_header(path / relative).items():
            if name != "__metadata__" and not entry["dtype"].startswith(("I", "U", "BOOL")):
                yield entry


def _config_files(path: Path) -> Iterator[Path]:
    yield Path("config.json")
    if (path / "modules.json").exists():
        yield Path("modules.json")
        for name in (
            "sentence_bert_config.json",
            *(f"{part.name}/config.json" for part in sorted(path.iterdir()) if part.is_dir()),
        ):
            if (path / name).exists():
                yield Path(name)


def _file_faults(path: Path, relative: Path) -> Iterator[str]:
    file, name = path / relative, relative.as_posix()
    if relative.suffix.lower() in PICKLE_SUFFIXES or _is_pickle(file):
        yield f"{name}: not safetensors; such files can run code when they are loaded"
    elif relative.suffix.lower() == ".gguf":
        yield f"{name}: a GGUF file whose digest is not pinned"
    elif relative.suffix == ".safetensors":
        try:
            _safetensors_header(file)
        except BadInput as error:
            yield f"{name}: {error.message}"
    elif relative.suffix == ".json":
        yield from _json_faults(file, relative)


def _json_faults(file: Path, relative: Path) -> Iterator[str]:
    name = relative.as_posix()
    if relative.name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        content = read_json(file)
        if isinstance(content, dict):
            yield from (f"{name}: {key} asks to run the model's own code" for key in CODE_KEYS if content.get(key))
    elif name == "modules.json":
        modules = read_json(file)
        kinds = (
            [part.get("type") if isinstance(part, dict) else None for part in modules]
            if isinstance(modules, list)
            else [None]
        )
        yield from (
            f"{name}: module {kind!r} is not part of sentence-transformers"
            for kind in kinds
            if not _is_own_module(kind)
        )
    elif name.endswith(".safetensors.index.json"):
        index = read_json(file)
        names = index.get("weight_map", {}) if isinstance(index, dict) else {}
        shards = set(map(str, names.values())) if isinstance(names, dict) else set()
        yield from (
            f"{name}: shard {shard!r} is not a plain file name" for shard in sorted(shards) if Path(shard).name != shard
        )


def _is_own_module(kind: object) -> bool:
    return isinstance(kind, str) and kind.startswith("sentence_transformers.")


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as opened:
        start = opened.read(8)
    if len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return True
    if not start.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(member.endswith((".pkl", ".pickle")) for member in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return True


def _safetensors_header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        prefix = opened.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, file.stat().st_size - 8):
            raise BadInput("not a safetensors file, or a truncated one")
        raw = opened.read(length)
    try:
        header = json.loads(raw)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
        readable = all(isinstance(entry["dtype"], str) and math.prod(entry["shape"]) >= 0 for entry in tensors)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        readable = False
    if not readable:
        raise BadInput("not a safetensors file: its header is not readable")
    if len(header) > MAX_TENSORS:
        raise BadInput(f"{len(header):,} tensors; the most is {MAX_TENSORS:,}")
    if length + 8 + end != file.stat().st_size:
        raise BadInput(f"truncated: {file.stat().st_size:,} bytes where the header promises {length + 8 + end:,}")
    return header  # type: ignore[no-any-return]
