"""Whole runs on random bases of other families: from a folder of weights to answers of personal models.

`python -m benchmarks.whole_run` takes bases of about 100M parameters through every stage, each command in a separate
process, and prints planned and peak resident memory. Tokenizer and embedder are those of the embedded models. Tests do
the same with tiny bases in their own process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE = Path(__file__).parent.parent / "mta_cli" / "sample"
FAMILIES: Mapping[str, dict[str, Any]] = {  # by transformers' configuration class: settings that the others lack
    "Qwen3": {"head_dim": 64},
    "Gemma3Text": {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 128},
}
LARGE: Mapping[str, Any] = {
    "hidden_size": 640,
    "intermediate_size": 1792,
    "num_hidden_layers": 15,
    "num_attention_heads": 10,
    "num_key_value_heads": 5,
}
TINY: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,  # the sixth layer is Gemma 3's first without a window
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
USER, QUESTION = "bryn", "Table tennis match at the fire station; alarms count as a draw."
PLANNED_MEMORY = re.compile(r"memory\s+about ([\d.]+) GB")


def make_base(folder: Path, family: str, size: Mapping[str, Any], tokenizer: Any, *, seed: int = 0) -> Path:
    """Saves a random base of a family, in bfloat16 as published ones are, with this tokenizer; returns the folder."""
    import torch
    import transformers

    shape = {
        **FAMILIES[family],
        **size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    config = getattr(transformers, f"{family}Config")(**shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def commands(folder: Path, name: str, machine: Sequence[str] = ()) -> list[list[str]]:
    """The command lines of a whole run on the base in `folder`, which is called `name` here."""
    on = ["--task", "taste", "--base", name, *machine]
    bank = ["--anchors", "3", "--rank", "4", "--min-items", "13", "--max-items", "8"]
    short = ["--epochs", "1", "--task-epochs", "1"]
    return [
        ["init"],
        ["model", "pull", str(folder), "--name", name],
        ["task", "add", str(SAMPLE / "taste.toml")],
        ["data", "import", "users", str(SAMPLE / "taste.users.json"), "--task", "taste"],
        ["bank", "build", *on, *bank, *short],
        ["user", "adapt", USER, "fleur", *on],
        ["compare", "--user", USER, *on, QUESTION],
    ]


@dataclass(frozen=True)
class Ran:
    """One command in a separate process: its output, seconds, and peak resident bytes."""

    out: str
    err: str
    seconds: float
    peak_bytes: int


def run(command: Sequence[str], store: Path) -> Ran:
    """Run `mta COMMAND` on a store, with the models beside it. Raises CalledProcessError with its output."""
    from mta_cli.pipeline.models.installed import resolve_model

    own = {"MTA_MODELS": str(store.parent / "models"), "MTA_MODELS_EMBEDDER": str(resolve_model("minilm-l6").path)}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        arguments = [sys.executable, "-m", "mta_cli", "--store", str(store), *command]
        given = {**os.environ, **own}
        process = subprocess.Popen(arguments, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=given)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        ran = Ran(out.read(), err.read(), time.perf_counter() - start, 1024 * usage.ru_maxrss)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments, ran.out, ran.err)
    return ran


def planned_gigabytes(command: Sequence[str], store: Path) -> str:
    """The memory in the command's plan, in GB; empty if the command plans none."""
    if command[:2] not in (["bank", "build"], ["user", "adapt"]):
        return ""
    dry = run([*command, "--dry-run"], store)
    found = PLANNED_MEMORY.search(dry.out + dry.err)
    return found[1] if found else ""


def make_large_base(folder: Path, family: str) -> None:
    """Saves a base of about 100M parameters, with the tokenizer of the embedded one."""
    from transformers import AutoTokenizer

    from mta_cli.pipeline.models.installed import resolve_model

    make_base(folder, family, LARGE, AutoTokenizer.from_pretrained(resolve_model("smollm2-135m-instruct").path))


def whole_run(family: str, root: Path) -> None:
    """A whole run on a base of about 100M parameters; prints each command, its figures and its answer."""
    folder, store = root / family, root / f"{family}-store"
    # in a separate process, since this one's peak memory would count for its children
    maker = multiprocessing.get_context("spawn").Process(target=make_large_base, args=(folder, family))
    maker.start()
    maker.join()
    print(f"== {family}")
    for command in commands(folder, family.lower()):
        planned = planned_gigabytes(command, store)
        ran = run(command, store)
        memory = f"{f'{planned} GB planned, ' if planned else ''}{ran.peak_bytes / 1e9:.2f} GB resident at most"
        print(f"$ mta {' '.join(command)}\n{ran.out}  ({ran.seconds:.0f} s; {memory})", flush=True)


def main() -> None:
    """Run the chosen families one after another in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        for family in given.families:
            whole_run(family, Path(root))


if __name__ == "__main__":
    main()
