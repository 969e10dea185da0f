"""vLLM on a CPU as a rival, in its own environment, whose Python is `MTA_BENCH_VLLM`.

It compiles its model, as it does by default; that takes a C++ compiler.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PYTHON = "MTA_BENCH_VLLM"
WINDOW = 512  # tokens of prompt and answer
WORKER = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what vLLM says goes to standard error
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
given = json.loads(sys.argv[1])
shape = {"max_model_len": given["window"], "max_num_seqs": 1, "enable_prefix_caching": False}
loras = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": given["rank"]}
engine = LLM(given["model"], dtype=given["dtype"], **shape, **loras)
lora = LoRARequest("user", 1, given["adapter"])
print("ready", file=answers, flush=True)
for line in sys.stdin:
    prompt, tokens = json.loads(line)
    choice = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    (found,) = engine.generate({"prompt_token_ids": prompt}, choice, lora_request=lora, use_tqdm=False)
    print(json.dumps(list(found.outputs[0].token_ids)), file=answers, flush=True)
"""
Answer = Callable[[Sequence[int], int], list[int]]


def why_not() -> str | None:
    """The reason why vLLM cannot be used; None if it can."""
    return None if PYTHON in os.environ else f"{PYTHON} is not set to a Python that has vLLM"


@contextmanager
def engine(base: Path, adapter: Path, rank: int, dtype: str, threads: int) -> Iterator[Answer]:
    """A running engine with one user's PEFT folder: a function from a prompt and a number of tokens to the answer."""
    given = {"model": str(base), "adapter": str(adapter), "rank": rank, "dtype": dtype, "window": WINDOW}
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    alone = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    command = [os.environ[PYTHON], "-c", WORKER, json.dumps(given)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, **small, **alone},
        )
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def read() -> str:
            if line := stdout.readline():
                return line
            log.seek(0)
            raise RuntimeError(f"vLLM has ended:\n{log.read()[-3000:]}")

        def answer(prompt: Sequence[int], tokens: int) -> list[int]:
            print(json.dumps([list(prompt), tokens]), file=stdin, flush=True)
            return list(json.loads(read()))

        try:
            read()
            yield answer
        finally:
            stdin.close()
            process.wait(60)
