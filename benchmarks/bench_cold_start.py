"""The size of a user on disk, and the time from a cold start to a first answer: `mta ask` compared with a PEFT folder
per user, and with `mta ask` beside a running `mta serve`.

One user of the included sample is fused from two anchors and adapted with minimal training, on which neither bytes nor
seconds depend. PEFT gets the same user's model, exported, and the same prompt; both generate one greedy token, and the
time runs from the start of the process to the first byte of the answer. In warm runs all files are in memory. Before
each cold run, the base's and the user's files are dropped from the page cache. The libraries stay in it, because
reading them from a slow disk takes a minute or more, equally for both sides. The limit is a process that imports torch
and reads the weights once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.bench_startup import environment, fill, mta

USER, TASK, QUESTION = "ansel", "voice", "The bus to the lake leaves at nine."
OURS, EXPORTED, LIMIT = "mta ask", "PEFT, the same user exported", "limit"
SERVED = "mta ask beside mta serve"
BUILD = (
    f"bank build --task {TASK} --anchors 2 --epochs 1 --task-epochs 1 --max-items 2 --min-items 12 --device cpu",
    f"user adapt {USER} --task {TASK} --steps 1 --device cpu",
)
ASK = f"ask --user {USER} --task {TASK} --history-items 0 --max-tokens 1 --device cpu"
PEFT_FOLDERS = {"all linear layers, rank 8": "all-linear", "q_proj and v_proj, rank 8": ("q_proj", "v_proj")}
AIM_BYTES, AIM_START = 500, 3

RIVAL = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, folder, dtype, ids = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
model = PeftModel.from_pretrained(model, folder).eval()
prompt = torch.tensor([json.loads(ids)])
with torch.inference_mode():
    made = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False)
print(tokenizer.decode(made[0, prompt.shape[1]:]), flush=True)
"""
FLOOR = """
import sys, torch
from safetensors.torch import load_file
print(float(sum(weight.sum(dtype=torch.float32) for weight in load_file(sys.argv[1]).values())), flush=True)
"""


@dataclass(frozen=True)
class Spoken:
    """One process: seconds to the first byte of its output and to its end, and its output."""

    first: float
    whole: float
    text: str


def speaking(command: Sequence[str], env: Mapping[str, str], cold: Iterable[Path] = ()) -> Callable[[], Spoken]:
    """A side of the measurement. `cold` are the files that it must read from disk."""
    files = list(cold)

    def speak() -> Spoken:
        forget(files)
        with tempfile.TemporaryFile() as talk:
            started = time.perf_counter()
            with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=talk) as process:
                assert process.stdout is not None
                said = os.read(process.stdout.fileno(), 1)
                first = time.perf_counter() - started
                said += process.stdout.read()
            if process.returncode or not said:
                talk.seek(0)
                raise SystemExit(talk.read().decode(errors="replace"))
        return Spoken(first, time.perf_counter() - started, said.decode().strip())

    return speak


def forget(files: Iterable[Path]) -> None:
    """Drop files from the page cache, as far as no running process has them mapped."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def files_of(*folders: Path) -> list[Path]:
    """Every file below the folders."""
    return [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in files_of(folder))


def prepare(folder: Path, env: Mapping[str, str]) -> tuple[dict[str, Any], Path]:
    """A store with one adapted user, and the folder of the user's export; returns the result of `user adapt`."""
    fill(env, TASK)
    results = [_json(line.split(), env) for line in BUILD]
    exported = folder / "exported"
    _json(["user", "export", USER, "--task", TASK, "--to", str(exported)], env)
    return results[1][0], exported


def _json(line: Sequence[str], env: Mapping[str, str]) -> Any:
    ran = subprocess.run(mta([*line, "--json"]), env=env, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    return json.loads(ran.stdout)


def peft_folders(model: Any, root: Path) -> dict[str, Path]:
    """PEFT folders for one user, by target modules."""
    from peft import LoraConfig, get_peft_model

    found = {}
    for number, (name, targets) in enumerate(PEFT_FOLDERS.items()):
        config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, config)
        adapted.save_pretrained(found.setdefault(name, root / f"peft-{number}"))
        model = adapted.unload()
    return found


def byte_rows(adapted: Mapping[str, Any], exported: Path, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The size of one user on disk in each form, and its ratio to ours."""
    recipe, stack = adapted["recipe_bytes"], adapted["stack_bytes"]
    sizes = {"mta: recipe": recipe, "mta: recipe and stack": recipe + stack}
    sizes |= {f"PEFT folder: {name}": size_of(folder) for name, folder in folders.items()}
    sizes["PEFT folder: the same user exported, exact"] = size_of(exported)
    return [
        {
            "a user": name,
            "bytes": size,
            "times recipe": size / recipe,
            "times recipe and stack": size / (recipe + stack),
        }
        for name, size in sizes.items()
    ]


def start_rows(runs: Mapping[str, Sequence[harness.Timed[Spoken]]]) -> list[dict[str, Any]]:
    """Median seconds to the first byte and to the end, compared with ours and the limit in the same cache state."""
    first = {name: statistics.median(run.value.first for run in taken) for name, taken in runs.items()}
    rows = []
    for name, taken in runs.items():
        state = name.rpartition(", ")[2]
        ours, limit = first[f"{OURS}, {state}"], first[f"{LIMIT}, {state}"]
        rows.append(
            {
                "start": name,
                "first byte s": first[name],
                "times ours": first[name] / ours,
                "% of limit": 100 * limit / first[name],
                "end s": statistics.median(run.value.whole for run in taken),
                "said": "" if name.startswith(LIMIT) else taken[0].value.text,
            }
        )
    return rows


def commands(exported: Path, ids: Sequence[int], dtype: str) -> dict[str, list[str]]:
    """The command line of each side."""
    base = str(harness.base_folder())
    return {
        OURS: [*mta([*ASK.split(), "--no-server"]), QUESTION],
        SERVED: [*mta(ASK.split()), QUESTION],
        EXPORTED: [sys.executable, "-c", RIVAL, base, str(exported), dtype, json.dumps(list(ids))],
        LIMIT: [sys.executable, "-c", FLOOR, f"{base}/model.safetensors"],
    }


@contextmanager
def served(env: Mapping[str, str]) -> Iterator[None]:
    """Inside the block, a server of the store runs."""
    command = mta(["serve", "--port", "0", "--device", "cpu"])
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield
        finally:
            process.terminate()


def from_the_base(root: Path) -> tuple[list[int], str, dict[str, Path]]:
    """The question's prompt, the base's number format, and PEFT folders; the base is freed again."""
    base = harness.load()
    ids = harness.prompter(base, TASK).prompt_ids(QUESTION)
    return ids, str(base.dtype).removeprefix("torch."), peft_folders(base.model, root)


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        env = {**environment(root), "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "10000"}
        adapted, exported = prepare(root, env)
        ids, dtype, folders = from_the_base(root)
        lines = commands(exported, ids, dtype)
        sides = {f"{name}, warm": speaking(line, env) for name, line in lines.items()}
        if hasattr(os, "posix_fadvise"):
            cold = files_of(harness.base_folder(), root / "store", exported)
            alone = {name: line for name, line in lines.items() if name != SERVED}  # the server holds the files
            sides |= {f"{name}, cold": speaking(line, env, cold) for name, line in alone.items()}
        with served(env):
            runs = harness.interleave(sides, repeats)
        bytes_ = byte_rows(adapted, exported, folders)
    harness.report("bytes_per_user", bytes_, aim=f"{AIM_BYTES} times smaller")
    harness.report("cold_start", start_rows(runs), dtype=dtype, repeats=repeats, aim=f"{AIM_START} times sooner")


if __name__ == "__main__":
    main()
