"""A user's exported model in other programs: compares their greedy tokens with ours, prompt by prompt.

`python -m benchmarks.runtimes --user USER --task TASK` exports a user of the store in `MTA_STORE` in all formats, lets
every installed runtime answer, and prints a table. `MTA_TEST_VLLM` names the program `vllm`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import torch

from benchmarks import llamacpp

if TYPE_CHECKING:
    from mta_cli.engine.model.load import LoadedBase
    from mta_cli.pipeline.models.manifest import ModelEntry
    from store.records import User
    from store.registry import Registry

PROMPTS, TOKENS = 20, 24
VLLM_VARIABLE = "MTA_TEST_VLLM"
LORA_NAME = "mine"  # the name of the exported LoRA in vLLM
RUNTIMES = {  # by the name in the table: the export format that the runtime reads
    "PEFT and transformers, `peft`": "peft",
    "transformers, `merged`": "merged",
    "llama.cpp, base and `gguf-lora`": "gguf-lora",
    "llama.cpp, `gguf`": "gguf",
    "vLLM, `peft`": "peft",
    "vLLM, `merged`": "merged",
}
Tokens = list[list[int]]


@dataclass(frozen=True)
class Question:
    """The input of every runtime: a base with the user's model merged, float32, and prompts as token ids."""

    base: LoadedBase
    prompts: Tokens
    ours: Tokens

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        return list(self.base.end_ids)


@dataclass(frozen=True)
class Difference:
    """The first difference of an answer: the prompt, the position, both tokens (None: the end) and the difference of
    our logits.
    """

    prompt: int
    place: int
    ours: int | None
    theirs: int | None
    gap: float


def ask_ourselves(reg: Registry, entry: ModelEntry, user: User, task_name: str, count: int = PROMPTS) -> Question:
    """The user's model in float32 and its answers: to own held-out questions first, then to those of other users."""
    from mta_cli.engine.generation.generate import generate_answers
    from mta_cli.engine.generation.request import SamplingParams
    from mta_cli.engine.lora.adapter import AdapterMerger
    from mta_cli.options import MachineOptions
    from mta_cli.pipeline.data.examples import PromptRowBuilder
    from mta_cli.pipeline.data.tasks import find_task
    from mta_cli.pipeline.models.load import load_on_device
    from mta_cli.pipeline.user_weights import loras_by_placement, most_personal_mode

    base = load_on_device(entry, MachineOptions(device="cpu", dtype="float32"), reg=reg)
    builder = PromptRowBuilder(reg, base, find_task(reg, task_name), 2)
    users = [user, *(other for other, _ in reg.users.users_with_items(task_name) if other.id != user.id)]
    asked = [query.input for one in users for query in reg.items.queries(one.id, task_name)][:count]
    prompts = [builder.prompter.prompt_ids(text, builder.retrieve_history(user.id, text, 2)) for text in asked]
    mode = most_personal_mode(reg, user, task_name, entry.fingerprint)
    weights, late, _ = loras_by_placement(reg, entry.fingerprint, user, task_name, mode)
    assert late is None, "the runtimes have one adapter, which acts on all tokens"
    AdapterMerger(base).set_adapter(weights)
    answers = [generate_answers(base, [prompt], [()], [0], SamplingParams(TOKENS))[0] for prompt in prompts]
    return Question(base, prompts, answers)


def differences(question: Question, theirs: Tokens) -> list[Difference]:
    """The first difference of each differing answer, with the difference of our logits of our token and theirs.

    The end of an answer counts as one of its tokens.
    """
    found = []
    for number, (ours, said) in enumerate(zip(question.ours, theirs, strict=True)):
        place = next((n for n, pair in enumerate(zip(ours, said, strict=False)) if pair[0] != pair[1]), None)
        if place is None and len(ours) == len(said):
            continue
        place = min(len(ours), len(said)) if place is None else place
        with torch.no_grad():
            ids = torch.tensor([[*question.prompts[number], *ours[:place]]])
            logits = question.base.model(input_ids=ids).logits[0, -1].float()
        pair = [one[place] if place < len(one) else None for one in (ours, said)]
        values = [float(logits[question.ends].max() if token is None else logits[token]) for token in pair]
        found.append(Difference(number, place, *pair, values[0] - values[1]))
    return found


def without_end(question: Question, tokens: Sequence[int]) -> list[int]:
    """The tokens before the first that ends the answer."""
    return next((list(tokens[:n]) for n, token in enumerate(tokens) if token in question.ends), list(tokens))


def by_transformers(model: Any, question: Question) -> Tokens:
    """Greedy tokens by `generate` of transformers."""
    found = []
    for prompt in question.prompts:
        ids = torch.tensor([prompt])
        said = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
        found.append(without_end(question, said[0, len(prompt) :].tolist()))
    return found


def peft_tokens(base: Path, folder: Path, question: Question) -> Tokens:
    """The tokens of PEFT on transformers, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return by_transformers(PeftModel.from_pretrained(plain, folder), question)


def merged_tokens(folder: Path, question: Question) -> Tokens:
    """The tokens of transformers on a merged folder, in float32."""
    from transformers import AutoModelForCausalLM

    return by_transformers(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), question)


def llamacpp_tokens(model: Path, adapters: Sequence[Path], question: Question) -> Tokens:
    """The tokens of llama.cpp on a GGUF, with all `adapters`."""
    asked = {"temperature": 0, "n_predict": TOKENS, "return_tokens": True, "cache_prompt": False}
    lora = llamacpp.adapter_of(0, len(adapters)) if adapters else {}
    found = []
    with llamacpp.server(model, adapters, 1, 1) as url, httpx.Client(base_url=url[: -len("/v1")], timeout=120) as http:
        for prompt in question.prompts:
            answer = http.post("/completion", json={"prompt": prompt, **asked, **lora}).raise_for_status().json()
            found.append(without_end(question, answer["tokens"]))
    return found


@contextmanager
def vllm_server(model: Path, log_file: Path, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Starts vLLM's server in float32; yields its address. Raises RuntimeError with its log if it exits at once."""
    from mta_cli.serving.server import listen

    with listen("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
    shape = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "4", "--enforce-eager"]
    command = [os.environ[VLLM_VARIABLE], "serve", str(model), *shape, "--host", "127.0.0.1", "--port", str(port)]
    small = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    with log_file.open("wb") as log:
        process = subprocess.Popen([*command, *arguments], env={**os.environ, **small}, stdout=log, stderr=log)
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise RuntimeError(log_file.read_text()[-3000:])
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def vllm_tokens(url: str, model: str, question: Question) -> Tokens:
    """The tokens that a running vLLM generates with `model`."""
    found = []
    asked = {"model": model, "max_tokens": TOKENS, "temperature": 0, "repetition_penalty": 1.0}
    with httpx.Client(base_url=url, timeout=300) as http:
        for prompt in question.prompts:
            body = {**asked, "prompt": prompt, "return_token_ids": True}
            answer = http.post("/v1/completions", json=body).raise_for_status().json()
            found.append(without_end(question, answer["choices"][0]["token_ids"]))
    return found


def vllm_lora_tokens(base: Path, folder: Path, rank: int, log_file: Path, question: Question) -> Tokens:
    """The tokens of vLLM on the base with an exported LoRA."""
    from mta_cli.pipeline.personalize.export_card import VLLM_RANKS

    served = next(one for one in VLLM_RANKS if one >= rank)
    loras = ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(served)]
    with vllm_server(base, log_file, [*loras, "--lora-modules", f"{LORA_NAME}={folder}"]) as url:
        return vllm_tokens(url, LORA_NAME, question)


def vllm_merged_tokens(folder: Path, log_file: Path, question: Question) -> Tokens:
    """The tokens of vLLM on a merged folder."""
    with vllm_server(folder, log_file) as url:
        return vllm_tokens(url, str(folder), question)


def export_all(reg: Registry, entry: ModelEntry, user: User, task: str, root: Path) -> dict[str, Any]:
    """Exports the user's model in every format, each into a folder of that name; returns the results by format."""
    from mta_cli.events import JobResult
    from mta_cli.pipeline.personalize.export import ExportOptions, export_user
    from mta_cli.pipeline.personalize.export_formats import FORMATS

    results = {}
    for form in FORMATS:
        *_, done = export_user(reg, entry, user, task, root / form, ExportOptions(form, examples=0))
        assert isinstance(done, JobResult)
        results[form] = done.result
    return results


def is_here(runtime: str) -> bool:
    """Whether a runtime of `RUNTIMES` is installed."""
    if runtime.startswith("llama.cpp"):
        return llamacpp.is_there()
    return VLLM_VARIABLE in os.environ or not runtime.startswith("vLLM")


def answerers(
    base: Path, exports: Path, results: Mapping[str, Any], question: Question
) -> dict[str, Callable[[], Tokens]]:
    """A function that answers with each export of `export_all`, by the names in `RUNTIMES`."""
    rank, log = results["peft"]["rank"], exports / "vllm.log"

    def base_and_lora() -> Tokens:
        llamacpp.write_base(exports / "base.gguf", base, "f16")
        return llamacpp_tokens(exports / "base.gguf", [exports / "gguf-lora" / "adapter.gguf"], question)

    found = (
        lambda: peft_tokens(base, exports / "peft", question),
        lambda: merged_tokens(exports / "merged", question),
        base_and_lora,
        lambda: llamacpp_tokens(exports / "gguf" / "model.gguf", [], question),
        lambda: vllm_lora_tokens(base, exports / "peft", rank, log, question),
        lambda: vllm_merged_tokens(exports / "merged", log, question),
    )
    return dict(zip(RUNTIMES, found, strict=True))


def main() -> None:
    """Run one user in every installed runtime; print a Markdown table, then every difference."""
    from mta_cli.pipeline.models.installed import resolve_model
    from store.registry import Registry

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--user", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    given = parser.parse_args()
    entry = resolve_model(given.base, "base")
    with tempfile.TemporaryDirectory() as root, Registry.open(Path(os.environ["MTA_STORE"])) as reg:
        user = reg.users.get(given.user)
        results = export_all(reg, entry, user, given.task, Path(root))
        question = ask_ourselves(reg, entry, user, given.task)
        print(f"{len(question.prompts)} prompts, {sum(map(len, question.ours))} tokens of ours, rank", end=" ")
        print(
            results["peft"]["rank"],
            "\n\n| runtime and format | equal | largest difference of logits |\n|---|---:|---:|",
        )
        for name, answer in answerers(entry.path, Path(root), results, question).items():
            if not is_here(name):
                continue
            found = differences(question, answer())
            gap = f"{max(one.gap for one in found):.3f}" if found else ""
            equal = len(question.prompts) - len(found)
            print(f"| {name} | {equal} of {len(question.prompts)} | {gap} |", flush=True)
            for one in found:
                ours, said = (
                    "(end)" if t is None else question.base.tokenizer.decode([t]) for t in (one.ours, one.theirs)
                )
                print(f"  prompt {one.prompt}, token {one.place}: {ours!r} or {said!r}, {one.gap:.4f}")


if __name__ == "__main__":
    main()
