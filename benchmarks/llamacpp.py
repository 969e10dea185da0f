"""llama.cpp's server as a rival, from the package `xllamacpp`, with the base and every user's LoRA in our GGUF
files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mta_cli.engine.lora.adapter import LoraWeights

TOKENS_PER_STREAM = 512  # of the context, which llama.cpp divides among its streams
SERVER = """
import json, sys, xllamacpp
given = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_parallel, params.n_ctx = given["model"], given["streams"], given["context"]
params.hostnames, params.port, params.cpuparams.n_threads = ["127.0.0.1"], 0, given["threads"]
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in given["adapters"]]
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def is_there() -> bool:
    """Whether the package is installed."""
    return find_spec("xllamacpp") is not None


def write_base(path: Path, folder: Path, number_format: str) -> None:
    """Write the base in `folder` as GGUF, in a number format of `mta user export` or in q4_0."""
    from safetensors import safe_open

    from mta_cli.engine.model.gguf_writer import write_model_gguf

    with safe_open(folder / "model.safetensors", "pt") as file:
        weights = [(name, lambda name=name: file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
        write_model_gguf(path, weights, folder, "bf16" if number_format == "q4_0" else number_format, {})
    if number_format == "q4_0":
        _round_to_q4_0(path)


def _round_to_q4_0(path: Path) -> None:
    """Round a file's matrices to 4 bits, and the embedding (also the head) to 8 bits, as llama.cpp's own tool does."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, Keys, LlamaFileType
    from gguf.quants import dequantize, quantize

    exact = path.rename(path.with_suffix(".exact.gguf"))
    reader = GGUFReader(exact)
    writer = GGUFWriter(path, reader.fields[Keys.General.ARCHITECTURE].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE):
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[-1] if inner else None)
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_0)
    for tensor in reader.tensors:
        kind = GGMLQuantizationType.Q8_0 if tensor.name == "token_embd.weight" else GGMLQuantizationType.Q4_0
        if len(tensor.shape) == 1:  # norms are not rounded
            kind = tensor.tensor_type
        writer.add_tensor(tensor.name, quantize(dequantize(tensor.data, tensor.tensor_type), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    exact.unlink()


def write_adapters(root: Path, folder: Path, weights: Sequence[LoraWeights]) -> list[Path]:
    """Write every user's LoRA as GGUF; returns the paths."""
    from mta_cli.engine.model.gguf_writer import write_lora_gguf
    from mta_cli.pipeline.personalize.export import pad_to_uniform_rank

    config = json.loads((folder / "config.json").read_text())
    paths = [root / f"{number}.gguf" for number in range(len(weights))]
    for path, own in zip(paths, weights, strict=True):
        write_lora_gguf(path, pad_to_uniform_rank(own), config, {})
    return paths


def adapter_of(number: int, count: int) -> Mapping[str, Any]:
    """The extra fields of a request for user `number` of `count`, which select only this user's adapter."""
    return {"lora": [{"id": other, "scale": float(other == number)} for other in range(count)]}


def answer_one(url: str, prompt: Sequence[int], tokens: int) -> list[int]:
    """The greedy answer of a server with one adapter, ignoring end tokens and without cached prompts."""
    import httpx

    body = {"prompt": list(prompt), "n_predict": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    body |= {"return_tokens": True, **adapter_of(0, 1)}
    answered = httpx.post(f"{url.removesuffix('/v1')}/completion", json=body, timeout=600)
    return list(answered.raise_for_status().json()["tokens"])


@contextmanager
def server(base: Path, adapters: Sequence[Path], streams: int, threads: int) -> Iterator[str]:
    """Inside the block, a server runs; yields its address, which ends in `/v1`."""
    given = {
        "model": str(base),
        "adapters": [str(path) for path in adapters],
        "streams": streams,
        "context": TOKENS_PER_STREAM * streams,
        "threads": threads,
    }
    command = [sys.executable, "-c", SERVER, json.dumps(given)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdin is not None and process.stdout is not None
        try:
            yield f"{process.stdout.readline().strip()}/v1"
        finally:
            process.stdin.close()
            process.wait(60)
