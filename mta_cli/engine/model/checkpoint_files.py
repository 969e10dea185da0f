"""Checks whether a model's folder is safe to load, and computes its fingerprint.

It reads only bytes and JSON, and executes nothing from the folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mta_cli.engine.model.safetensors_header import open_to_read, read_safetensors_header
from mta_cli.errors import BadInput, Command, MtaError, NotFound

# Keys that differ between two saves of the same model, or only name the writing program.
VOLATILE_KEYS = frozenset(
    {"_name_or_path", "_model_name_or_path", "transformers_version", "_commit_hash", "_attn_implementation"}
)
CONFIG_FILE_NAMES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer_config.json",
    }
)
ADDED_TOKEN_KEYS = frozenset({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"})
_TERMINAL_CONTROL = re.compile("[\x07\x08\x1b\x80-\x9f]")


def read_json(path: Path) -> Any:
    """The parsed JSON of a file in a model's folder. Raises NotFound without the file, BadInput if it is not JSON."""
    try:
        with open_to_read(path) as file:
            return json.loads(file.read().decode())
    except FileNotFoundError:
        raise NotFound(f"{path.parent} has no {path.name}; it is not a model's folder") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: cannot be read as JSON ({type(error).__name__})") from error


def read_config(path: Path) -> dict[str, Any]:
    """The folder's `config.json` as a dictionary. Raises the errors of `read_json`, and BadInput for other JSON."""
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        found = type(config).__name__
        raise BadInput(f"{path / 'config.json'}: expected a JSON object, as transformers writes it; found {found}")
    return config


def model_files(path: Path) -> list[Path]:
    """Every file of the folder, as sorted relative paths. Hidden files and folders are left out."""
    files = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.parts))


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of the folder, relative and sorted."""
    return [file for file in model_files(path) if file.suffix == ".safetensors"]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises BadInput if it cannot be read."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path, digests: dict[str, str] | None = None) -> str:
    """`sha256:…` over the configuration (without volatile keys) and the names and SHA-256 of the weight files.

    The module files of a sentence-transformers folder count as configuration. `digests` maps names of weight files to
    SHA-256 that are already known, to save time.
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


def check_folder(path: Path, *, thorough: bool = False) -> None:
    """Checks that the folder is a model with safetensors weights, and not an adapter.

    Raises NotFound if there is no model folder, IntegrityFault for damaged weights, BadInput for other faults. Weights
    in other formats and the model's own code are never read. `thorough` also checks `tokenizer.json`, which is slow:
    use it once, when a model is first used.
    """
    require_folder(path)
    faults = [fault for relative in model_files(path) for fault in _file_faults(path, relative)]
    if thorough and not faults and (path / "tokenizer.json").exists():
        faults += _token_faults("tokenizer.json", read_json(path / "tokenizer.json"), "added_tokens")
    if (path / "adapter_config.json").exists():
        faults.append("adapter_config.json: this is an adapter, not a base")
    if not faults:
        read_config(path)
        faults += [] if weight_files(path) else ["no safetensors weights"]
    if faults:
        raise BadInput(
            f"{path} cannot be used as a model: {faults[0]}",
            hint="a base has a config.json, a tokenizer and weights in safetensors; mta runs no code of a model",
            faults=tuple(faults[:20]),
        )


def require_folder(path: Path) -> None:
    """Raises NotFound if `path` is not a folder with config.json or adapter_config.json.

    Call it before reading all files, because a folder that is not a model's may be very large.
    """
    if not path.is_dir():
        raise NotFound(f"There is no model folder at {path}", hint=(Command("model list"), " shows installed models"))
    if not any((path / name).exists() for name in ("config.json", "adapter_config.json")):
        raise NotFound(f"{path} has no config.json; it is not a model's folder")


@contextmanager
def load_errors_as_bad_input(what: str, hint: str | None = None) -> Iterator[None]:
    """Inside the block, any library error about a folder's content becomes a BadInput that begins with `what`."""
    try:
        yield
    except (MtaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in a library's Rust code is not an Exception
        lines = str(error).strip().splitlines() or ["no message"]
        raise BadInput(f"{what}: {type(error).__name__}: {lines[0][:300]}", hint=hint) from error


def parameter_count(path: Path) -> int:
    """The number of parameters in the safetensors files, from their headers."""
    return sum(math.prod(entry["shape"]) for entry in _float_tensor_entries(path))


def weight_dtypes(path: Path) -> list[str]:
    """The floating-point formats of the stored tensors (`BF16`, `F32`, …), sorted."""
    return sorted({entry["dtype"] for entry in _float_tensor_entries(path)})


def _float_tensor_entries(path: Path) -> Iterator[dict[str, Any]]:
    for relative in weight_files(path):
        for entry in read_safetensors_header(path / relative).tensors.values():
            if not entry["dtype"].startswith(("I", "U", "BOOL")):
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
    file = path / relative
    if relative.suffix == ".safetensors":
        read_safetensors_header(file)
    elif relative.suffix == ".json":
        yield from _json_faults(file, relative)
    elif _is_unpickled(path, file):
        yield f"{relative.as_posix()}: not safetensors"


def _is_unpickled(path: Path, file: Path) -> bool:
    """Whether sentence-transformers would unpickle the file: it does so if a module has no safetensors."""
    is_embedder = (path / "modules.json").exists()
    return is_embedder and file.name == "pytorch_model.bin" and not file.with_name("model.safetensors").exists()


def _json_faults(file: Path, relative: Path) -> Iterator[str]:
    name = relative.as_posix()
    if relative.name in CONFIG_FILE_NAMES:
        content = read_json(file)
        if (strange := _find_control_sequence(content)) is not None:
            yield f"{name}: {strange[:60]!a} contains terminal control characters"
        yield from _token_faults(name, content, "added_tokens_decoder")
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
            if not (isinstance(kind, str) and kind.startswith("sentence_transformers."))
        )
    elif name.endswith(".safetensors.index.json"):
        index = read_json(file)
        names = index.get("weight_map", {}) if isinstance(index, dict) else {}
        shards = set(map(str, names.values())) if isinstance(names, dict) else set()
        yield from (
            f"{name}: shard {shard!r} is not a plain file name" for shard in sorted(shards) if Path(shard).name != shard
        )


def _token_faults(name: str, content: Any, key: str) -> Iterator[str]:
    """Faults of added tokens with unknown keys, which the tokenizers library would print unescaped."""
    tokens = content.get(key) if isinstance(content, dict) else None
    entries = tokens.values() if isinstance(tokens, dict) else tokens if isinstance(tokens, list) else ()
    odd = (inner for entry in entries if isinstance(entry, dict) for inner in entry if inner not in ADDED_TOKEN_KEYS)
    yield from (f"{name}: an added token has the unknown key {inner[:60]!a}" for inner in odd)


def _find_control_sequence(content: Any) -> str | None:
    """A key that is not printable, or a text with a terminal control character; None if there is none.

    Libraries print both unescaped.
    """
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for key, inner in one.items():
                if not key.replace("\n", "").isprintable():
                    return str(key)
                waiting.append(inner)
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str) and _TERMINAL_CONTROL.search(one):
            return one
    return None
